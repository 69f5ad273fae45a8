"""The masking process: how tokens become masks, and with what probability masks become tokens.

A token that is given, such as those of a prompt whose response is learned, is never masked and has no
part in a loss. Its id i is marked by the complement ~i, which is negative, until it is corrupted.
Every function that draws takes its own `torch.Generator`.
"""

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

SMALLEST_TIME = 1e-5
"""Times are drawn from here up: at 0 nothing is masked and the bound's weight diverges."""


def low_discrepancy_times(batch: int, generator: torch.Generator) -> Tensor:
    """Return one time for each of `batch` sequences, (batch,) float64, in a random order.

    Each of `batch` equal strata of [`SMALLEST_TIME`, 1] holds exactly one time, all at the same
    offset: t_i = (i + u) / batch. Each time alone is uniform (Kingma et al., 2021, section I.1).
    """
    offset = torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device)
    strata = torch.randperm(batch, generator=generator, device=generator.device)
    return SMALLEST_TIME + (1 - SMALLEST_TIME) * (strata + offset) / batch


def corrupt(
    tokens_BL: Tensor, times_B: Tensor, *, schedule: Schedule, mask_token_id: int, generator: torch.Generator
) -> Tensor:
    """Mask each token of sequence b with probability 1 - alpha(times_B[b]), but for those given.

    Returns:
        Ids (B, L), none of them negative.
    """
    uniform = torch.rand(tokens_BL.shape, generator=generator, dtype=torch.float64, device=generator.device)
    clean = uniform < schedule.alpha(times_B)[:, None]
    ids_BL = plain_ids(tokens_BL)
    return torch.where(clean.to(tokens_BL.device) | (tokens_BL < 0), ids_BL, mask_token_id)


def plain_ids(tokens_BL: Tensor) -> Tensor:
    """Return the ids of tokens, whether they are marked as given or not."""
    return torch.where(tokens_BL < 0, ~tokens_BL, tokens_BL)


def unmask_probability(t: Tensor, s: Tensor, *, schedule: Schedule) -> Tensor:
    """Return rho(t, s) = (alpha(s) - alpha(t)) / (1 - alpha(t)) for s <= t, elementwise.

    The probability that a position masked at time `t` is clean at the earlier time `s`. It is 1 for
    s = 0, and 0 for s = t = 0, where no position is masked.
    """
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    masked = 1 - alpha_t
    return torch.where(masked > 0, (alpha_s - alpha_t) / masked.clamp_min(torch.finfo(t.dtype).tiny), 0.0)
