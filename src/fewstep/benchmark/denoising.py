"""The diffusion side of `bench latency`: seconds of a full and of a partial step, and their sum.

A timed step is a real step of the sampling loop, drawing included. The sampler is "first-hitting", which
unmasks the same number of positions in every step, so that one step of a kind costs what another does:

    full      computes all positions, and keeps their keys and values
    partial   computes the positions that unmask now and those that the step before unmasked

With `cache_refresh` 1 all steps are full; with R, every R-th is, and the others are partial. Without a
cache a full step need not keep keys and values, so rows with `cache_refresh` 1 are overstated by that
copy, about 0.2%.

Timed is the second step of a generation, on a canvas where the first has unmasked its length / steps
positions; a single step starts from masks. It is full where the cache knows nothing, and partial where
the cache knows masks alone. What the kept keys and values hold does not matter for the time, so one
cache serves all steps.

A partial step is timed for each number of steps. A full one is timed for the fewest and the most alone,
and is linear in between in the positions that it unmasks, length / steps: their share of it, the
last block and the head, is.

Every sequence begins with its own first token, which is given, so that no two are equal. Equal ones would
be computed once, as in the first step from nothing but masks. That saving is left out here: such a
generation takes about (batch - 1) / batch of a full step less than its row says.
"""

from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from fewstep import seeds
from fewstep.benchmark.sampling import SCHEDULE
from fewstep.benchmark.timing import Stopwatch
from fewstep.models.language_model import Denoiser
from fewstep.models.row_pass import DenoiserCache
from fewstep.sampling.loop import unmask_in_steps
from fewstep.sampling.samplers import sampler_named

SAMPLER = "first-hitting"
WARM_UP_LENGTH = 64
WARM_UP_STEPS = 4


def full_weights(num_steps: int, timed: tuple[int, int]) -> dict[int, float]:
    """Return what the full steps that are timed count for in a full step of one of `num_steps`.

    Args:
        timed: The fewest and the most steps; `num_steps` lies between.

    Linear in 1 / num_steps; a step that counts for nothing is left out.
    """
    fewest, most = timed
    assert fewest <= num_steps <= most
    if fewest == most:
        return {fewest: 1.0}
    share = fewest * (most - num_steps) / (num_steps * (most - fewest))
    return {steps: weight for steps, weight in ((fewest, share), (most, 1 - share)) if weight > 0}


def canvas(denoiser: Denoiser, *, batch: int, length: int, num_given: int = 1) -> Tensor:
    """Return sequences (B, L) of `num_given` tokens, of which the first is each one's own, and masks."""
    tokens_BL = torch.full((batch, length), denoiser.mask_token_id, device=denoiser.device)
    tokens_BL[:, :num_given] = 0
    tokens_BL[:, 0] = torch.arange(batch, device=denoiser.device) % denoiser.vocab_size
    return tokens_BL


def generation(
    denoiser: Denoiser,
    tokens_BL: Tensor,
    *,
    num_steps: int,
    cache_refresh: int,
    seed: int,
    cache: DenoiserCache | None = None,
) -> Any:
    """Return the steps that unmask `tokens_BL`."""
    return unmask_in_steps(
        denoiser,
        tokens_BL,
        num_steps=num_steps,
        sampler=sampler_named(SAMPLER),
        schedule=SCHEDULE,
        generators=seeds.sequence_generators(seed, count=len(tokens_BL)),
        cache_refresh=cache_refresh,
        cache=cache,
    )


class StepsOfDenoiser:
    """Makes and times full and partial steps of generations of any number of steps, with one cache.

    The cache is filled with random keys and values once, so that no step is the first to touch it.
    """

    def __init__(self, denoiser: Denoiser, *, batch: int, length: int, seed: int) -> None:
        self.denoiser, self.batch, self.length, self.seed = denoiser, batch, length, seed
        self.cache = denoiser.new_cache(batch, length)
        self.cache.storage.uniform_(-1, 1)

    def full_seconds(self, num_steps: int) -> float:
        """Return the seconds of a full step of a generation of `num_steps`."""
        self.cache.forget()
        return self.seconds(num_steps)

    def partial_seconds(self, num_steps: int) -> float:
        """Return the seconds of a partial step; `num_steps` is at least 2."""
        assert num_steps > 1, "a single step is a full one"
        self.cache.tokens_BL.fill_(self.denoiser.mask_token_id)
        return self.seconds(num_steps)

    def seconds(self, num_steps: int) -> float:
        with closing(self.steps_left(num_steps)) as steps, Stopwatch(self.denoiser.device) as watch:
            next(steps)
        return watch.seconds

    def steps_left(self, num_steps: int) -> Any:
        """Return the second and later steps of a generation; the only one, if there is only one."""
        num_given = -(-self.length // num_steps) if num_steps > 1 else 1
        tokens_BL = canvas(self.denoiser, batch=self.batch, length=self.length, num_given=num_given)
        steps_left = max(1, num_steps - 1)
        return generation(
            self.denoiser, tokens_BL, num_steps=steps_left, cache_refresh=0, seed=self.seed, cache=self.cache
        )

    def warm_up(self) -> None:
        """Write a short text, in full and partial steps."""
        length = min(self.length, WARM_UP_LENGTH)
        tokens_BL = canvas(self.denoiser, batch=self.batch, length=length)
        for _ in generation(
            self.denoiser, tokens_BL, num_steps=WARM_UP_STEPS, cache_refresh=0, seed=self.seed
        ):
            pass
