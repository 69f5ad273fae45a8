"""The one loop of all samplers: from a partly masked batch to text, at most one pass a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.time_grid import time_grid
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.sampling.sharpening import Sharpening
from fewstep.sampling.unmasking import draw_tokens, row_generators

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
    """Chooses positions before a pass, and may keep only some of the tokens drawn after it."""

    def candidates(self, step: Step) -> Tensor: ...
    def accepted(self, step: Step, candidates_BL: Tensor, probabilities_N: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Progress:
    """The batch after `step` of `num_steps` steps, and the forward passes made so far."""

    tokens_BL: Tensor
    step: int
    num_steps: int
    num_forwards: int


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
) -> Iterator[Progress]:
    """Yield the batch after each of `num_steps` steps; the last has no mask left.

    Args:
        tokens_BL: ids, the mask where a token is to be written; other positions never change.
        generators: one for each row, so that its text does not depend on the batch.

    A step in which nothing unmasks makes no forward pass, and rows that unmask nothing are left out
    of it.
    """
    tokens_BL = tokens_BL.clone()
    masked_at_start_B = (tokens_BL == denoiser.mask_token_id).sum(1)
    num_forwards = 0
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
        active = candidates_BL.any(1)
        if active.any():
            rows_ND = denoiser.hidden(tokens_BL[active])[candidates_BL[active]]
            drawn, probabilities = draw_tokens(
                denoiser, rows_ND, row_generators(candidates_BL, generators), sharpening
            )
            accepted_BL = sampler.accepted(step, candidates_BL, probabilities)
            tokens_BL[accepted_BL] = drawn[accepted_BL[candidates_BL]]
            num_forwards += 1
        yield Progress(tokens_BL.clone(), number + 1, num_steps, num_forwards)
