"""`bench sampling`: our sampler, uncached and cached, against the plain one; all draw the same way.

The plain sampler computes logits and noise at every position in every step. It and ours uncached draw
from one distribution, ancestral sampling's; with a cache ours is approximate. Weights are untrained:
what they are changes nothing about the time.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

from fewstep import seeds
from fewstep.benchmark import networks
from fewstep.benchmark.machine import checked_device, describe
from fewstep.benchmark.peak_memory import can_measure, peak_above
from fewstep.benchmark.plain_code import load_plain
from fewstep.benchmark.profile import time_outside_matrix_products
from fewstep.benchmark.timing import Timing, in_turn, timed
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.models.language_model import Denoiser
from fewstep.sampling.loop import unmask_in_steps
from fewstep.sampling.samplers import sampler_named

SCHEDULE = SCHEDULES["log-linear"]
WARM_UP_STEPS = 2
Progress = Callable[[str], None]
"""Called with one line of what has just been done."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What `bench sampling` runs; the command describes each field."""

    shape: str
    length: int
    steps: tuple[int, ...]
    batch: int
    cache_refresh: int
    repeats: int
    seed: int
    device: str

    def __post_init__(self) -> None:
        checked_device(self.device)
        networks.check_shape(self.shape, self.length)
        networks.check_positive(steps=self.steps, batch=self.batch, repeats=self.repeats)
        networks.check_cache_refresh(self.cache_refresh)
        if self.cache_refresh == 1:
            raise ValueError("cache_refresh is 1, which is the uncached sampler; 8 caches, 0 never refreshes")

    def check_memory(self) -> None:
        """Raise ValueError if weights and the plain sampler's tensors do not fit."""
        device = torch.device(self.device)
        sizes = networks.sizes_of(self.shape, device)
        elements = self.batch * self.length * (sizes.vocab_size + 1)
        plain = elements * (4 + 5 * 8)  # log-probabilities; weights, noise and what is made of them
        networks.check_fits(
            f"{self.shape} at batch {self.batch} and length {self.length}",
            networks.weight_bytes(self.shape, device)
            + networks.generation_bytes(self.shape, self.batch, self.length, device)
            + plain,
            device,
            "choose a smaller batch, length or shape",
        )


def run_sampling(settings: SamplingSettings, progress: Progress) -> dict[str, Any]:
    """Return `rows`, one for each number of steps, `speedup` and `speedup_cached`, and the machine.

    Both speedups are the smallest over the numbers of steps, each a ratio of median tokens/s. `profile`
    says which share of an uncached step's processor time is outside matrix products.

    Raises:
        ValueError: if this is no checkout, or the work cannot fit.
    """
    plain = load_plain("sampling")
    settings.check_memory()
    device = torch.device(settings.device)
    machine = describe(device)
    progress(f"{settings.shape}: drawing untrained weights")
    denoiser = networks.new_denoiser(settings.shape, device)
    denoiser.folded()
    peaks = _warm_up(denoiser, plain, settings)
    outside = time_outside_matrix_products(second_step(denoiser, settings))
    rows = []
    for num_steps in settings.steps:
        timings = in_turn(
            [timed(name, work, device) for name, work in works(denoiser, plain, settings, num_steps).items()],
            repeats=settings.repeats,
        )
        rows.append(_row(settings, num_steps, timings))
        progress(
            f"{num_steps} steps: {rows[-1]['speedup']:.2f} times the plain sampler, "
            f"{rows[-1]['speedup_cached']:.2f} times with a cache"
        )
    return {
        "benchmark": "sampling",
        "speedup": min(row["speedup"] for row in rows),
        "speedup_cached": min(row["speedup_cached"] for row in rows),
        "rows": rows,
        "peak_bytes": peaks,
        "profile": outside,
        "settings": asdict(settings),
        "machine": machine,
    }


def works(
    denoiser: Denoiser, plain: ModuleType, settings: SamplingSettings, num_steps: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return a whole generation by each sampler, by the name that its seconds carry; each returns tokens."""
    tokens_BL = torch.full(
        (settings.batch, settings.length), denoiser.mask_token_id, device=torch.device(settings.device)
    )

    def ours(cache_refresh: int) -> torch.Tensor:
        *_, last = unmask_in_steps(
            denoiser,
            tokens_BL,
            num_steps=num_steps,
            sampler=sampler_named("ancestral"),
            schedule=SCHEDULE,
            generators=seeds.sequence_generators(settings.seed, count=settings.batch),
            cache_refresh=cache_refresh,
        )
        return last.tokens_BL

    def plainly() -> torch.Tensor:
        return plain.plain_unmask(
            denoiser,
            tokens_BL,
            num_steps=num_steps,
            schedule=SCHEDULE,
            generator=seeds.generator(settings.seed, device=tokens_BL.device),
        )

    return {"plain": plainly, "uncached": partial(ours, 1), "cached": partial(ours, settings.cache_refresh)}


def second_step(denoiser: Denoiser, settings: SamplingSettings) -> Callable[[], object]:
    """Return work that makes the second step of an uncached generation in the first of `settings.steps`."""
    device = torch.device(settings.device)
    steps = unmask_in_steps(
        denoiser,
        torch.full((settings.batch, settings.length), denoiser.mask_token_id, device=device),
        num_steps=settings.steps[0],
        sampler=sampler_named("ancestral"),
        schedule=SCHEDULE,
        generators=seeds.sequence_generators(settings.seed, count=settings.batch),
    )
    next(steps)
    return lambda: next(steps)


def _warm_up(denoiser: Denoiser, plain: ModuleType, settings: SamplingSettings) -> dict[str, int] | None:
    """Run each sampler for a few steps; return the peak memory of each above the weights, where known."""
    short = works(denoiser, plain, settings, WARM_UP_STEPS)
    for work in short.values():
        work()
    device = torch.device(settings.device)
    return {name: peak_above(work, device) for name, work in short.items()} if can_measure(device) else None


def _row(settings: SamplingSettings, num_steps: int, timings: dict[str, Timing]) -> dict[str, Any]:
    num_tokens = settings.batch * settings.length
    plain = timings["plain"].median
    return {
        "model": settings.shape,
        "batch": settings.batch,
        "steps": num_steps,
        "cache_refresh": settings.cache_refresh,
        "speedup": plain / timings["uncached"].median,
        "speedup_cached": plain / timings["cached"].median,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "tokens_per_second": {name: num_tokens / timing.median for name, timing in timings.items()},
    }
