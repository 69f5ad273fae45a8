"""Streams of random numbers: the same for the same path, independent for different ones."""

import torch

from fewstep import seeds


def drawn(generator: torch.Generator) -> tuple[float, ...]:
    return tuple(torch.rand(8, generator=generator, dtype=torch.float64).tolist())


def test_the_same_path_gives_the_same_stream() -> None:
    assert drawn(seeds.generator(3, 1, 4)) == drawn(seeds.generator(3, 1, 4))


def test_different_paths_give_different_streams() -> None:
    paths = [(5,), (5, 0), (5, 0, 0), (0, 5), (5, 1), (1, 5), (5, 1, 0), (2**32 + 5,), (5, 2**32)]
    streams = {path: drawn(seeds.generator(*path)) for path in paths}
    assert len(set(streams.values())) == len(paths)


def test_a_sequence_draws_the_same_in_every_batch() -> None:
    together = [drawn(g) for g in seeds.sequence_generators(7, 2, count=5)]
    later = [drawn(g) for g in seeds.sequence_generators(7, 2, count=2, first=3)]
    assert together[3:] == later
    assert len(set(together)) == 5
