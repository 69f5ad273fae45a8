"""The one loop of all samplers: from a partly masked batch to text, at most one pass a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.time_grid import time_grid
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.sampling.sharpening import Sharpening
from fewstep.sampling.unmasking import draw_tokens, draw_tokens_with_probabilities, row_generators

ROUNDING = 1e-6
"""More than the rounding errors of a number of positions, which must not count as a position."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a sampler knows when it chooses the positions of a step from time `t` to `s`."""

    t: Tensor
    s: Tensor
    schedule: Schedule
    masked_BL: Tensor
    """Positions that are masked now."""
    masked_at_start_B: Tensor
    """How many positions of each row the whole generation unmasks."""
    generators: list[torch.Generator]

    def counts(self) -> list[int]:
        """Return how many positions of each row a sampler of fixed numbers unmasks in this step.

        Those left are as many as are expected of the time, rounded up: late steps see most.
        """
        expected_left = self.masked_at_start_B.double() * (1 - self.schedule.alpha(self.s).item())
        left = (expected_left - ROUNDING).ceil().long()
        masked = self.masked_BL.sum(1)
        return (masked - left).clamp(min=0).minimum(masked).tolist()


class Sampler(Protocol):
    """Chooses, before a pass, the positions that it predicts."""

    def candidates(self, step: Step) -> Tensor: ...


@runtime_checkable
class SelectiveSampler(Sampler, Protocol):
    """Keeps only some of the tokens drawn, in view of the probabilities that the network gives them."""

    def accepted(self, step: Step, candidates_BL: Tensor, probabilities_N: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Progress:
    """The batch after `step` of `num_steps` steps, and what it has cost so far."""

    tokens_BL: Tensor
    step: int
    num_steps: int
    num_forwards: int
    """Forward passes, full or not."""
    positions_computed: int
    """Positions that these passes computed, over all sequences; L in a full pass of one."""


class CachingDenoiser(DenoiserNetwork, Protocol):
    """A denoiser that can compute some rows against kept keys and values of the others."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None, cache: Any = None) -> Tensor: ...
    def new_cache(self, batch: int, length: int) -> Any: ...


@torch.inference_mode()
def unmask_in_steps(
    denoiser: DenoiserNetwork,
    tokens_BL: Tensor,
    *,
    num_steps: int,
    sampler: Sampler,
    schedule: Schedule,
    generators: list[torch.Generator],
    sharpening: Sharpening = Sharpening(),
    cache_refresh: int = 1,
    cache: Any = None,
) -> Iterator[Progress]:
    """Yield the batch after each of `num_steps` steps; the last has no mask left.

    A step in which nothing unmasks makes no forward pass, and rows that unmask nothing are left out
    of it.

    Args:
        tokens_BL: ids, the mask where a token is to be written; other positions never change.
        generators: one for each row, so that its text does not depend on the batch.
        cache_refresh: 1 computes every position in every pass, which is exact. R > 1 does so every R
            steps, and 0 only once; passes between compute only the positions that unmask and those
            that the step before unmasked, against kept keys and values of the others.
        cache: kept keys and values to go on with; by default none.

    Raises:
        ValueError: if a setting is out of range, or the denoiser cannot keep keys and values.
    """
    if cache is None:
        cache = new_cache(denoiser, tokens_BL, cache_refresh)
    tokens_BL = tokens_BL.clone()
    masked_at_start_B = (tokens_BL == denoiser.mask_token_id).sum(1)
    num_forwards = positions_computed = 0
    times = time_grid(num_steps)
    for number in range(num_steps):
        step = Step(
            t=times[number],
            s=times[number + 1],
            schedule=schedule,
            masked_BL=tokens_BL == denoiser.mask_token_id,
            masked_at_start_B=masked_at_start_B,
            generators=generators,
        )
        candidates_BL = sampler.candidates(step)
        if cache is not None and cache_refresh > 0 and number % cache_refresh == 0:
            cache.forget()
        if candidates_BL.any():
            rows_ND, computed = asked_rows(denoiser, tokens_BL, candidates_BL, cache)
            generators_N = row_generators(candidates_BL, generators)
            if isinstance(sampler, SelectiveSampler):
                drawn, probabilities = draw_tokens_with_probabilities(
                    denoiser, rows_ND, generators_N, sharpening
                )
                accepted_BL = sampler.accepted(step, candidates_BL, probabilities)
                tokens_BL[accepted_BL] = drawn[accepted_BL[candidates_BL]]
            else:
                tokens_BL[candidates_BL] = draw_tokens(denoiser, rows_ND, generators_N, sharpening)
            num_forwards += 1
            positions_computed += computed
        yield Progress(tokens_BL.clone(), number + 1, num_steps, num_forwards, positions_computed)


def new_cache(denoiser: DenoiserNetwork, tokens_BL: Tensor, cache_refresh: int) -> Any:
    """Return an empty cache for `tokens_BL`; None where every pass is a full one."""
    if cache_refresh < 0:
        raise ValueError(
            f"cache_refresh is {cache_refresh}; it is the steps from one full pass to the next, "
            "or 0 to make only one"
        )
    if cache_refresh == 1:
        return None
    if not hasattr(denoiser, "new_cache"):
        raise ValueError(
            f"cache_refresh is {cache_refresh}, and a {type(denoiser).__name__} cannot compute some "
            "positions without the others; leave cache_refresh at 1"
        )
    return cast(CachingDenoiser, denoiser).new_cache(*tokens_BL.shape)


def asked_rows(
    denoiser: DenoiserNetwork, tokens_BL: Tensor, asked_BL: Tensor, cache: Any
) -> tuple[Tensor, int]:
    """Return the hidden rows (N, D) of asked positions, and how many positions were computed for them."""
    if cache is None:
        return denoiser.hidden(tokens_BL, asked_BL), int(asked_BL.any(1).sum()) * tokens_BL.shape[1]
    before = cache.positions_computed
    rows_ND = cast(CachingDenoiser, denoiser).hidden(tokens_BL, asked_BL, cache)
    return rows_ND, cache.positions_computed - before
