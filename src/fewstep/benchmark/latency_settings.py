"""What `bench latency` runs, what of it is refused, and which rows it gives."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from fewstep.benchmark import networks
from fewstep.benchmark.autoregressive import cache_lengths
from fewstep.benchmark.machine import checked_device


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """What `bench latency` runs; the command describes each field."""

    shapes: tuple[str, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    cache_refresh: tuple[int, ...]
    length: int
    timed_tokens: int
    repeats: int
    max_seconds: float
    check: bool
    seed: int
    device: str

    def __post_init__(self) -> None:
        checked_device(self.device)
        if not self.shapes or not self.cache_refresh:
            raise ValueError("shapes or cache_refresh is empty; name at least one of each")
        for shape in self.shapes:
            networks.check_shape(shape, self.length)
        for cache_refresh in self.cache_refresh:
            networks.check_cache_refresh(cache_refresh)
        networks.check_positive(
            batches=self.batches, steps=self.steps, timed_tokens=self.timed_tokens, repeats=self.repeats
        )
        if max(self.steps) > self.length:
            raise ValueError(
                f"steps is {max(self.steps)} and length {self.length}; a step unmasks at least one token"
            )
        cache_lengths(self.length, self.timed_tokens)

    def check_memory(self) -> None:
        """Raise ValueError if some shape at the largest batch does not fit."""
        device = torch.device(self.device)
        for shape in self.shapes:
            batch = max(self.batches)
            networks.check_fits(
                f"{shape} at batch {batch} and length {self.length}",
                self.bytes_of(shape, batch),
                device,
                "choose smaller batches, or leave the shape out",
            )

    def bytes_of(self, shape: str, batch: int) -> int:
        """Return about what one set of weights and a generation takes."""
        device = torch.device(self.device)
        return networks.weight_bytes(shape, device) + networks.generation_bytes(
            shape, batch, self.length, device
        )


def keys_of(settings: LatencySettings, shape: str) -> list[dict[str, Any]]:
    """Return what tells the rows of a shape from each other, in their order."""
    cells = [(None, None), *product(settings.cache_refresh, settings.steps)]
    return [
        {"model": shape, "batch": batch, "steps": steps, "cache_refresh": refresh}
        for batch in settings.batches
        for refresh, steps in cells
    ]
