"""The one path from a seed to random numbers."""

import numpy as np
import torch


def generator(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one purpose, named by integers `path`, of a run with this `seed`.

    Different paths give independent streams; the same path gives the same stream, so nothing about
    random numbers has to be saved to resume.
    """
    state = np.random.SeedSequence(seed, spawn_key=path).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]) << 32 | int(state[1]))


def sequence_generators(
    seed: int, *path: int, count: int, first: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """Return a generator for each of `count` sequences, numbered from `first`.

    What a sequence draws depends on its number alone, not on the batch it is computed in.
    """
    return [generator(seed, *path, first + index, device=device) for index in range(count)]
