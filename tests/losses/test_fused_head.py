"""Head and loss in one against autograd of the plain formula in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.losses import fused_head
from fewstep.losses.divergences import DIVERGENCES
from fewstep.losses.fused_head import head_cross_entropy, head_divergence, log_probabilities
from tests import reference

N, D, V = 37, 8, 13
LOSSES = [*DIVERGENCES, "cross_entropy"]
every_loss = pytest.mark.parametrize("name", LOSSES)


class Problem:
    """Rows and heads of student and teacher, and token targets, all random."""

    def __init__(self, rows: int = N) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(rows, D, generator=generator, requires_grad=True)
        self.teacher_rows = torch.randn(rows, D, generator=generator, requires_grad=True)
        self.tokens = torch.randint(0, V, (rows,), generator=generator)
        self.head, self.teacher_head = nn.Linear(D, V), nn.Linear(D, V)
        with torch.no_grad():
            for head in (self.head, self.teacher_head):
                head.weight.normal_(0, 0.7, generator=generator)
                head.bias.normal_(0, 0.7, generator=generator)

    def student(self) -> list[Tensor]:
        return [self.rows, self.head.weight, self.head.bias]

    def fused(self, name: str, weights: Tensor | None = None) -> Tensor:
        if name == "cross_entropy":
            return head_cross_entropy(self.rows, self.head, self.tokens, weights)
        return head_divergence(self.rows, self.head, self.teacher_rows, self.teacher_head, DIVERGENCES[name])

    def plain(self, name: str, weights: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The loss and its gradients by the student's tensors, by autograd in float64."""
        rows, weight, bias = (t.detach().double().requires_grad_() for t in self.student())
        logits = rows @ weight.T + bias
        if name == "cross_entropy":
            losses = reference.cross_entropy(logits, self.tokens)
        else:
            teacher = self.teacher_rows.detach().double() @ self.teacher_head.weight.detach().double().T
            losses = reference.DIVERGENCES[name](logits, teacher + self.teacher_head.bias.detach().double())
        loss = (losses if weights is None else losses * weights).sum()
        loss.backward()
        return loss.detach(), [t.grad for t in (rows, weight, bias) if t.grad is not None]


def gradients(problem: Problem) -> list[Tensor]:
    found = [tensor.grad for tensor in problem.student()]
    return [gradient for gradient in found if gradient is not None]


@every_loss
def test_loss_and_gradients_are_those_of_autograd(name: str) -> None:
    problem = Problem()
    loss = problem.fused(name)
    loss.backward()
    expected, expected_gradients = problem.plain(name)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for gradient, wanted in zip(gradients(problem), expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-5, atol=2e-6)


@every_loss
def test_gradients_by_finite_differences(name: str) -> None:
    problem = Problem()
    problem.fused(name).backward()
    generator = torch.Generator().manual_seed(1)
    for tensor, gradient in zip(problem.student(), gradients(problem), strict=True):
        direction = torch.randn(tensor.shape, generator=generator)
        direction /= direction.norm()
        h, values = 3e-3, []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * h * direction
                values.append(problem.fused(name).item())
                tensor -= sign * h * direction
        slope = (values[0] - values[1]) / (2 * h)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.02, abs=0.01)


@every_loss
def test_chunks_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Problem()
    loss = whole.fused(name)
    loss.backward()
    for elements in (1, V, 5 * V + 3, N * V - 1):
        monkeypatch.setattr(fused_head, "CHUNK_ELEMENTS", elements)
        parts = Problem()
        chunked = parts.fused(name)
        chunked.backward()
        assert chunked.item() == pytest.approx(loss.item(), rel=1e-6)
        for one, other in zip(gradients(parts), gradients(whole), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_tensor_of_all_rows_and_tokens_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                Largest.elements = max(Largest.elements, result.numel())
            return result

    monkeypatch.setattr(fused_head, "CHUNK_ELEMENTS", 4 * V)
    problem = Problem(rows=200)
    with Largest():
        problem.fused("reverse_kl").backward()
    assert Largest.elements == 200 * D  # the rows; N x V would be 200 * 13


def test_row_weights_scale_loss_and_gradients() -> None:
    weights = torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    weights[4] = 0.0
    problem = Problem()
    loss = problem.fused("cross_entropy", weights)
    loss.backward()
    expected, expected_gradients = problem.plain("cross_entropy", weights)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for gradient, wanted in zip(gradients(problem), expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-5, atol=5e-6)
    assert problem.rows.grad is not None and not problem.rows.grad[4].any()


@every_loss
def test_upstream_gradient_is_passed_on(name: str) -> None:
    one, scaled = Problem(), Problem()
    one.fused(name).backward()
    (scaled.fused(name) / -4).backward()
    for gradient, other in zip(gradients(one), gradients(scaled), strict=True):
        torch.testing.assert_close(gradient / -4, other, rtol=1e-6, atol=1e-8)


@every_loss
def test_zero_rows_give_zero(name: str) -> None:
    problem = Problem(rows=0)
    loss = problem.fused(name)
    loss.backward()
    assert loss.item() == 0.0
    assert [tuple(g.shape) for g in gradients(problem)] == [(0, D), (V, D), (V,)]
    assert not any(gradient.any() for gradient in gradients(problem))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_teacher_receives_no_gradient(name: str) -> None:
    problem = Problem()
    problem.fused(name).backward()
    assert problem.teacher_rows.grad is None
    assert problem.teacher_head.weight.grad is None
    assert problem.teacher_head.bias.grad is None


def test_gradients_are_not_computed_where_none_are_wanted() -> None:
    """Validation needs a third of the work of training."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Products.count += func.overloadpacket in (
                torch.ops.aten.mm,
                torch.ops.aten.addmm,
                torch.ops.aten.addmm_,
            )
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Products():
        Problem().fused("cross_entropy")
    assert Products.count == 1


def reduced(problem: Problem) -> Problem:
    """The same problem with rows and heads that bf16 holds exactly."""
    with torch.no_grad():
        for tensor in (*problem.student(), problem.teacher_rows, *problem.teacher_head.parameters()):
            tensor.copy_(tensor.bfloat16())
    return problem


@every_loss
def test_mistake_log_probabilities_kept_in_bf16_under_autocast(name: str) -> None:
    problem = reduced(Problem())
    with torch.autocast("cpu", torch.bfloat16):
        loss = problem.fused(name)
    loss.backward()
    expected, expected_gradients = problem.plain(name)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for gradient, wanted in zip(gradients(problem), expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-5, atol=2e-6)


@every_loss
def test_mistake_log_probabilities_kept_in_bf16_with_bf16_rows(name: str) -> None:
    problem = reduced(Problem())
    expected, expected_gradients = problem.plain(name)
    problem.rows = problem.rows.detach().bfloat16().requires_grad_()
    problem.teacher_rows = problem.teacher_rows.detach().bfloat16()
    problem.head.bfloat16(), problem.teacher_head.bfloat16()
    loss = problem.fused(name)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for gradient, wanted in zip(gradients(problem), expected_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("prepare", [lambda t: t, lambda t: t.bfloat16()], ids=["float32 rows", "bf16 rows"])
def test_mistake_log_probabilities_kept_in_bf16_by_themselves(prepare: Callable[[Tensor], Tensor]) -> None:
    problem = reduced(Problem())
    rows, head = problem.rows.detach(), problem.head
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_p = log_probabilities(prepare(rows), head)
    expected = (rows.double() @ head.weight.detach().double().T + head.bias.detach().double()).log_softmax(1)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_head_without_bias_serves() -> None:
    problem = Problem()
    without = nn.Linear(D, V, bias=False)
    with torch.no_grad():
        without.weight.copy_(problem.head.weight)
        problem.head.bias.zero_()
    expected = problem.fused("reverse_kl")
    loss = head_divergence(
        problem.rows, without, problem.teacher_rows, problem.teacher_head, DIVERGENCES["reverse_kl"]
    )
    loss.backward()
    assert loss.item() == expected.item()
    assert without.weight.grad is not None and without.weight.grad.any()


def test_frozen_head_gets_no_gradient_and_the_rows_the_same() -> None:
    """As where adapters alone are trained."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 9)
    values, tokens = torch.randn(5, 6, generator=generator), torch.arange(5)
    gradients = []
    for trained in (True, False):
        head.requires_grad_(trained)
        rows = values.clone().requires_grad_()
        head_cross_entropy(rows, head, tokens).backward()
        gradients.append(rows.grad)
        assert (head.weight.grad is not None) == (head.bias.grad is not None) == trained
        head.zero_grad()
    assert torch.equal(*gradients)
