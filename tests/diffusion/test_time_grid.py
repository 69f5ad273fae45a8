"""Time grids, and the mistakes that other code makes with them."""

import pytest
import torch

from fewstep.diffusion.masking import unmask_probability
from fewstep.diffusion.schedule import LogLinear
from fewstep.diffusion.time_grid import rollout_times, time_grid


def test_grid_by_hand() -> None:
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("num_steps", [1, 3, 7, 49, 128, 1000, 1024])
def test_mistake_grid_that_ends_above_zero(num_steps: int) -> None:
    grid = time_grid(num_steps)
    assert len(grid) == num_steps + 1
    assert grid.dtype == torch.float64
    assert grid[0].item() == 1.0
    assert grid[-1].item() == 0.0
    assert (grid.diff() < 0).all()
    torch.testing.assert_close(-grid.diff(), torch.full((num_steps,), 1 / num_steps).double())


@pytest.mark.parametrize("num_steps", [0, -3])
def test_fewer_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        time_grid(num_steps)


def test_rollout_times_by_hand() -> None:
    """A grid interpolated with (1 - t) in place of (1 - weight) has other rows than these."""
    times = rollout_times(torch.tensor([1.0, 0.5, 0.375], dtype=torch.float64), delta=0.125, teacher_steps=3)
    assert times.tolist() == [
        [1.0, 0.5, 0.375],
        [0.875, 0.375, 0.25],
        [0.75, 0.25, 0.125],
        [0.625, 0.125, 0.0],
    ]


def test_mistake_grid_one_teacher_step_short() -> None:
    """k teacher steps end at t - k * delta, of which the last pass is run at t - (k - 1) * delta."""
    times = rollout_times(torch.tensor([0.9], dtype=torch.float64), delta=0.1, teacher_steps=2)
    assert times.shape == (3, 1)
    torch.testing.assert_close(times[:, 0], torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))


def test_mistake_negative_times_near_zero() -> None:
    times = rollout_times(torch.tensor([1e-5, 0.3], dtype=torch.float64), delta=0.25, teacher_steps=4)
    assert times[:, 0].tolist() == [1e-5, 0.0, 0.0, 0.0, 0.0]
    assert times[-1].tolist() == [0.0, 0.0]
    assert (times >= 0).all()
    probability = unmask_probability(times[:-1], times[1:], schedule=LogLinear())
    assert ((probability >= 0) & (probability <= 1)).all()
    assert probability[0, 0].item() == 1.0
