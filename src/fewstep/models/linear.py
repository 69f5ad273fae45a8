"""Linear layers by the kernels that are fastest for them.

Without gradients, in float32 on a CPU, that is oneDNN from `FEWEST_ROWS` rows on: it adds bias, GELU and
residual while it multiplies, where `addmm` writes the bias first and the rest costs a pass over memory
each, and it does better with few rows. PyTorch has it for its compiler, under no public name.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 4
"""With fewer rows, a product is one of a matrix and vectors, which other kernels do as fast."""


def linear(
    layer: nn.Module,
    inputs: Tensor,
    *,
    outputs: slice | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Return what a linear layer makes of `inputs` (..., D).

    Args:
        outputs: those wanted of the layer's outputs, which must be a plain one; by default all.
        gelu: whether to take their GELU, in its approximation by tanh.
        residual: what to add them to, of their shape; of no GELU.
    """
    assert not gelu or residual is None
    if not (is_plain(layer) and _suits_onednn(inputs, layer)):
        values = layer(inputs) if outputs is None else F.linear(inputs, *_cut(layer, outputs))
        return _gelu(values) if gelu else values if residual is None else residual + values
    weight, bias = (layer.weight, layer.bias) if outputs is None else _cut(layer, outputs)
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(inputs, residual, weight, bias, "add")
    if gelu and torch.backends.cpu.get_cpu_capability() == "AVX512":  # with AVX2 it is slower inside
        return product(inputs, weight, bias, "gelu", [], "tanh")
    values = product(inputs, weight, bias, "none", [], "")
    return _gelu(values) if gelu else values


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a linear layer is its weight and bias and no more: not quantized, without an adapter."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


def _cut(layer: nn.Module, outputs: slice) -> tuple[Tensor, Tensor | None]:
    assert is_plain(layer), "the weight of another cannot be cut"
    return layer.weight[outputs], None if layer.bias is None else layer.bias[outputs]


def _suits_onednn(inputs: Tensor, layer: nn.Linear) -> bool:
    return (
        not torch.is_grad_enabled()
        and inputs.device.type == "cpu"
        and inputs.dtype == layer.weight.dtype == torch.float32
        and inputs.numel() >= FEWEST_ROWS * inputs.shape[-1]
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _gelu(values: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return F.gelu(values, approximate="tanh")
    return torch.ops.aten.gelu_(values, approximate="tanh")
