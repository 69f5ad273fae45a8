"""The times that samplers and teacher rollouts visit."""

import torch
from torch import Tensor


def time_grid(num_steps: int) -> Tensor:
    """Return the `num_steps + 1` times of a generation, float64, from exactly 1 to exactly 0.

    Raises:
        ValueError: if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; generation takes at least 1 step")
    return torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps


def rollout_times(times_B: Tensor, *, delta: float, teacher_steps: int) -> Tensor:
    """Return the times of a teacher rollout, (teacher_steps + 1, B): max(t - i * delta, 0)."""
    steps = torch.arange(teacher_steps + 1, dtype=times_B.dtype, device=times_B.device)
    return (times_B - delta * steps[:, None]).clamp_min(0)
