"""Distil with a mistake of existing code: teacher passes spread evenly from t to t - k * delta.

    python benchmarks/ablations/mistaken_grid.py --config recipes/sotu_ablation.yaml --output runs/grid

The last of k passes should be at t - (k - 1) * delta. With k = 2 the mistake unmasks twice as much in the
first pass, so that targets are those of a teacher who is further on than its student can be. All flags are
those of `fewstep distill`.
"""

import sys

import torch
from torch import Tensor

from fewstep.cli.main import main
from fewstep.distillation import targets


def mistaken_times(times_B: Tensor, *, delta: float, teacher_steps: int) -> Tensor:
    """Return times (teacher_steps + 1, B) of which the last but one, not the last, is t - k * delta."""
    passes = torch.arange(teacher_steps, dtype=times_B.dtype) * teacher_steps / (teacher_steps - 1)
    end = passes.new_tensor([teacher_steps])
    return (times_B - delta * torch.cat([passes, end])[:, None]).clamp_min(0)


if __name__ == "__main__":
    targets.rollout_times = mistaken_times
    sys.exit(main(["distill", *sys.argv[1:]]))
