"""A linear layer against its formula in float64, whichever kernel computes it, and which one does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.models.linear import FEWEST_ROWS, linear
from tests.reference import gelu_tanh

D, OUT = 24, 40
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN, whose use is tested"
)


class Products(TorchDispatchMode):
    """Notes which operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(bias: bool = True) -> nn.Linear:
    made = nn.Linear(D, OUT, bias=bias)
    with torch.no_grad():
        made.weight.copy_(drawn(OUT, D))
        if bias:
            made.bias.copy_(drawn(OUT))
    return made


@pytest.mark.parametrize("without_gradients", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, D), (FEWEST_ROWS - 1, D), (FEWEST_ROWS, D), (2, 9, D), (0, D)])
@pytest.mark.parametrize("part", [None, slice(0, 16), slice(16, None)])
def test_values_are_those_of_the_formula(
    without_gradients: bool, bias: bool, shape: tuple[int, ...], part: slice | None
) -> None:
    one, inputs = layer(bias), drawn(*shape)
    expected = inputs.double() @ one.weight.double().T + (one.bias.double() if bias else 0)
    expected = expected[..., part or slice(None)]
    residual = drawn(*expected.shape)
    kept = residual.clone()
    with torch.set_grad_enabled(not without_gradients):
        plain, activated, added = (
            linear(one, inputs, outputs=part, **more) for more in ({}, {"gelu": True}, {"residual": residual})
        )
    for found, wanted in (
        (plain, expected),
        (activated, gelu_tanh(expected)),
        (added, expected + residual.double()),
    ):
        assert found.requires_grad is not without_gradients and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    assert torch.equal(residual, kept), "it is not summed in place"


@needs_onednn
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_gelu_is_the_same_inside_the_product_and_behind_it(
    capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    one, inputs = layer(), drawn(7, D)
    with torch.no_grad(), Products() as products:
        found = linear(one, inputs, gelu=True)
    assert ("gelu_" in products.names) is (capability == "AVX2")
    expected = gelu_tanh(inputs.double() @ one.weight.double().T + one.bias.double())
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-4)


def names(one: nn.Module, inputs: Tensor, **context: Any) -> list[str]:
    grad, autocast = context.get("grad", False), context.get("autocast", False)
    with (
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        Products() as products,
    ):
        linear(one, inputs)
    return products.names


@needs_onednn
def test_onednn_computes_what_it_is_faster_at() -> None:
    fused = "_linear_pointwise"
    assert fused in names(layer(), drawn(FEWEST_ROWS, D))
    assert fused not in names(layer(), drawn(FEWEST_ROWS - 1, D)), "too few rows"
    assert fused not in names(layer(), drawn(9, D), grad=True), "it has no gradient"
    assert fused not in names(layer(), drawn(9, D), autocast=True), "another precision is asked for"
    assert fused not in names(layer().bfloat16(), drawn(9, D).bfloat16())

    class Adapted(nn.Linear):
        pass

    assert fused not in names(Adapted(D, OUT), drawn(9, D)), "not a plain layer"
