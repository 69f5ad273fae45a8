"""Row losses and their closed-form gradients against autograd, finite differences and hand values."""

import math

import pytest
import torch

from fewstep.losses.divergences import DIVERGENCES, cross_entropy
from tests import reference

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def drawn(rows: int = 40, tokens: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher, float64, some nearly certain and one pair equal."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, rows, tokens, generator=generator, dtype=torch.float64)
    both *= torch.linspace(0.1, 8, rows, dtype=torch.float64)[:, None]
    return both[0], both[1]


def test_the_five_divergences_are_there() -> None:
    assert set(DIVERGENCES) == set(reference.DIVERGENCES)


@every_divergence
def test_loss_is_the_formula(name: str) -> None:
    student, teacher = drawn()
    loss, _ = DIVERGENCES[name](student.log_softmax(1), teacher.log_softmax(1))
    torch.testing.assert_close(loss, reference.DIVERGENCES[name](student, teacher), rtol=1e-10, atol=1e-13)


@every_divergence
def test_gradient_is_that_of_autograd(name: str) -> None:
    student, teacher = drawn()
    student.requires_grad_()
    reference.DIVERGENCES[name](student, teacher).sum().backward()
    _, gradient = DIVERGENCES[name](student.detach().log_softmax(1), teacher.log_softmax(1))
    torch.testing.assert_close(gradient, student.grad, rtol=1e-10, atol=1e-12)


@every_divergence
def test_gradient_by_finite_differences(name: str) -> None:
    student, teacher = drawn(rows=6, tokens=5)
    log_q, h = teacher.log_softmax(1), 1e-6
    _, gradient = DIVERGENCES[name](student.log_softmax(1), log_q)
    for token in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[token] = h
        above, _ = DIVERGENCES[name]((student + step).log_softmax(1), log_q)
        below, _ = DIVERGENCES[name]((student - step).log_softmax(1), log_q)
        torch.testing.assert_close(gradient[:, token], (above - below) / (2 * h), rtol=1e-5, atol=1e-8)


@every_divergence
def test_zero_where_student_equals_teacher(name: str) -> None:
    student, _ = drawn()
    loss, gradient = DIVERGENCES[name](student.log_softmax(1), student.log_softmax(1))
    assert loss.abs().max() < 1e-14
    assert gradient.abs().max() < 1e-14


def test_values_by_hand() -> None:
    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    log_p = torch.tensor([[math.log(0.5), math.log(0.5), -50.0]], dtype=torch.float64)
    log_q = torch.tensor([[math.log(x) for x in q]], dtype=torch.float64)
    assert DIVERGENCES["reverse_kl"](log_p, log_q)[0].item() == pytest.approx(0.5 * math.log(2), rel=1e-12)
    forward = 0.25 * math.log(0.5) + 0.25 * (math.log(0.25) + 50)
    assert DIVERGENCES["forward_kl"](log_p, log_q)[0].item() == pytest.approx(forward, rel=1e-12)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    js = 0.5 * sum(a * math.log(a / m) for a, m in zip(p, middle, strict=True) if a)
    js += 0.5 * sum(b * math.log(b / m) for b, m in zip(q, middle, strict=True))
    assert DIVERGENCES["jensen_shannon"](log_p, log_q)[0].item() == pytest.approx(js, rel=1e-10)


def test_mistake_total_variation_on_log_probabilities() -> None:
    """1/2 sum |p - q| of these is 1/2 (0.4 + 0.1 + 0.3) = 0.4; on log-probabilities it is 1.62."""
    log_p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    log_q = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float64).log()
    assert DIVERGENCES["total_variation"](log_p, log_q)[0].item() == pytest.approx(0.4, rel=1e-12)
    disjoint = torch.tensor([[0.0, -80.0]], dtype=torch.float64)
    assert DIVERGENCES["total_variation"](disjoint, disjoint.flip(1))[0].item() == pytest.approx(1.0)


def test_mistake_mask_column_leaking_into_mse() -> None:
    """The mean is over the V real tokens: a further column would divide by V + 1, or add its own error."""
    log_p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    log_q = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    loss, _ = DIVERGENCES["mse"](log_p, log_q)
    assert loss.item() == pytest.approx(2 * math.log(2) ** 2 / 3, rel=1e-12)


def test_jensen_shannon_is_symmetric_and_at_most_log_two() -> None:
    student, teacher = (logits.log_softmax(1) for logits in drawn())
    one, other = (
        DIVERGENCES["jensen_shannon"](*pair)[0] for pair in ((student, teacher), (teacher, student))
    )
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert (one <= math.log(2)).all()
    certain = torch.tensor([[0.0, -200.0]], dtype=torch.float64)
    assert DIVERGENCES["jensen_shannon"](certain, certain.flip(1))[0].item() == pytest.approx(math.log(2))


def test_cross_entropy_and_its_gradient() -> None:
    student, _ = drawn()
    tokens = torch.arange(40) % 11
    student.requires_grad_()
    expected = reference.cross_entropy(student, tokens)
    expected.sum().backward()
    loss, gradient = cross_entropy(student.detach().log_softmax(1), tokens)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-10, atol=1e-13)


@every_divergence
def test_extreme_rows_stay_finite_in_float32(name: str) -> None:
    student = torch.tensor([[300.0, -300.0, 0.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[-300.0, 300.0, 0.0], [500.0, -500.0, 0.0]])
    loss, gradient = DIVERGENCES[name](student.log_softmax(1), teacher.log_softmax(1))
    assert loss.isfinite().all() and gradient.isfinite().all()
