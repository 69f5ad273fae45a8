"""Masking schedules against their definitions."""

import math

import pytest
import torch

from fewstep.diffusion.schedule import SCHEDULES, Cosine, Linear, LogLinear, Schedule

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every_schedule
def test_ends_are_exact(schedule: Schedule) -> None:
    assert schedule.alpha(times(0.0, 1.0)).tolist() == [1.0, 0.0]


@every_schedule
def test_alpha_decreases_strictly(schedule: Schedule) -> None:
    alpha = schedule.alpha(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (alpha.diff() < 0).all()


@every_schedule
def test_derivative_is_that_of_alpha(schedule: Schedule) -> None:
    t, h = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), 1e-6
    difference = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.alpha_derivative(t), difference, rtol=1e-7, atol=1e-9)


@every_schedule
def test_inverse_undoes_alpha(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=1e-12)
    assert schedule.inverse(times(0.0, 1.0)).tolist() == [1.0, 0.0]


def test_values_by_hand() -> None:
    assert LogLinear().alpha(times(0.3)).item() == 0.7
    assert Cosine().alpha(times(1 / 3)).item() == pytest.approx(math.sqrt(3) / 2, rel=1e-14)
    by_hand = (math.exp(-0.5) - math.exp(-2.0)) / (1 - math.exp(-2.0))
    assert Linear(total_noise=2.0).alpha(times(0.25)).item() == pytest.approx(by_hand, rel=1e-14)
