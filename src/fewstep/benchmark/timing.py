"""Fair timing: a warm-up, then tasks taken in turn, and the median and spread of each.

Taken in turn (A B A B, never A A B B), tasks meet the same clock rates and the same neighbours, so a
ratio of two medians of one run means something even on a machine whose speed drifts.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Task = Callable[[], Mapping[str, float]]
"""Runs once, and returns the seconds of each thing that it timed, by name."""


@dataclass(frozen=True)
class Timing:
    """The seconds of every run of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest run, in seconds."""
        return min(self.seconds), max(self.seconds)


class Stopwatch:
    """Times the body of a `with`: by events on CUDA, by the clock elsewhere; read `seconds` after it."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.seconds = math.nan

    def __enter__(self) -> "Stopwatch":
        if self.is_cuda:
            torch.cuda.synchronize()
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.start.record()
        else:
            self.started = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.is_cuda:
            self.end.record()
            self.end.synchronize()
            self.seconds = self.start.elapsed_time(self.end) / 1000
        else:
            self.seconds = time.perf_counter() - self.started


def timed(name: str, work: Callable[[], object], device: torch.device) -> Task:
    """Return the task that does `work` and times the whole of it as `name`."""

    def task() -> dict[str, float]:
        with Stopwatch(device) as watch:
            work()
        return {name: watch.seconds}

    return task


def in_turn(
    tasks: Sequence[Task],
    *,
    repeats: int,
    warm_up: Sequence[Callable[[], object]] = (),
    max_seconds: float = math.inf,
) -> dict[str, Timing]:
    """Return the timings of all tasks by name, after each of `warm_up` has run once, untimed.

    Args:
        tasks: One round runs each once, in this order.
        repeats: Rounds.
        warm_up: What runs first; usually the tasks themselves, or shorter versions of them.
        max_seconds: A task that has timed this much is left out of further rounds.
    """
    assert repeats >= 1
    for work in warm_up:
        work()
    seconds: dict[str, list[float]] = {}
    spent = [0.0] * len(tasks)
    for _ in range(repeats):
        for place, task in enumerate(tasks):
            if spent[place] >= max_seconds:
                continue
            for name, value in task().items():
                seconds.setdefault(name, []).append(value)
                spent[place] += value
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
