"""Texts longer than the context, written block after block (semi-autoregressively).

The first context is written at once. Then the window slides: what it drops is finished, and a block of
masks at its end is written in view of what stays. With a cache, the keys and values of what stays go
along, so that a step computes the block alone; rotary attention sees only distances, which sliding
leaves as they are.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.sampling.loop import Progress, Sampler, new_cache, unmask_in_steps
from fewstep.sampling.sharpening import Sharpening


def windows(length: int, context_length: int, block_length: int) -> list[int]:
    """Return where the window begins in turn; each begins `block_length`, at the end less, after the last."""
    return [*range(0, length - context_length, block_length), length - context_length]


@torch.inference_mode()
def unmask_in_blocks(
    denoiser: DenoiserNetwork,
    tokens_BL: Tensor,
    *,
    context_length: int,
    block_length: int,
    num_steps: int,
    sampler: Sampler,
    schedule: Schedule,
    generators: list[torch.Generator],
    sharpening: Sharpening = Sharpening(),
    cache_refresh: int = 1,
) -> Iterator[Progress]:
    """Yield the batch after each step; see `unmask_in_steps`, whose arguments these are, and:

    Args:
        tokens_BL: ids of texts of more than `context_length` tokens.
        context_length: positions that the denoiser sees at once.
        block_length: positions written at once after the first context.
        num_steps: steps of the first context; a block takes its share of them, rounded up.
    """
    tokens_BL = tokens_BL.clone()
    starts = windows(tokens_BL.shape[1], context_length, block_length)
    slides = [end - start for start, end in pairwise(starts)]
    steps = [num_steps, *(math.ceil(num_steps * slide / context_length) for slide in slides)]
    cache = new_cache(denoiser, tokens_BL[:, :context_length], cache_refresh)
    done = Progress(tokens_BL, 0, sum(steps), 0, 0)
    for start, slide, steps_here in zip(starts, [0, *slides], steps, strict=True):
        if cache is not None and slide:
            cache.slide(slide)
        window = slice(start, start + context_length)
        before = done
        for progress in unmask_in_steps(
            denoiser,
            tokens_BL[:, window],
            num_steps=steps_here,
            sampler=sampler,
            schedule=schedule,
            generators=generators,
            sharpening=sharpening,
            cache_refresh=cache_refresh,
            cache=cache,
        ):
            tokens_BL[:, window] = progress.tokens_BL
            done = replace(
                before,
                tokens_BL=tokens_BL.clone(),
                step=before.step + progress.step,
                num_forwards=before.num_forwards + progress.num_forwards,
                positions_computed=before.positions_computed + progress.positions_computed,
            )
            yield done
