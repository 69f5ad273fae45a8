"""Perplexity on held-out text: a bound for a denoiser, exact for an autoregressive model."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.masking import corrupt, low_discrepancy_times
from fewstep.diffusion.schedule import Schedule
from fewstep.losses.nelbo import nelbo_sum
from fewstep.losses.next_token import next_token_sum
from fewstep.models.language_model import AutoregressiveLM, Denoiser


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood in nats a token (a bound for a denoiser), with its standard error."""

    nats_per_token: float
    standard_error: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.standard_error


@torch.no_grad()
def likelihood(
    model: Denoiser | AutoregressiveLM, tokens: Tensor, *, schedule: Schedule, seed: int = 0
) -> Likelihood:
    """Return the likelihood of sequences `tokens` (sequences, L).

    A denoiser's bound is estimated with one low-discrepancy time a sequence, drawn over all
    sequences; the standard error treats sequences as independent, which these times only improve on.
    """
    tokens = tokens.to(model.device)
    if isinstance(model, Denoiser):
        generator = seeds.generator(seed)
        times = low_discrepancy_times(len(tokens), generator)
        corrupted = corrupt(
            tokens, times, schedule=schedule, mask_token_id=model.mask_token_id, generator=generator
        )
        sums = [
            nelbo_sum(model, clean, masked, time, schedule=schedule)
            for clean, masked, time in zip(
                tokens.split(1), corrupted.split(1), times.to(tokens.device).split(1), strict=True
            )
        ]
    else:
        sums = [next_token_sum(model, row) for row in tokens.split(1)]
    per_token = torch.stack(sums).double() / tokens.shape[1]
    error = per_token.std().item() / math.sqrt(len(tokens)) if len(tokens) > 1 else math.nan
    return Likelihood(per_token.mean().item(), error, tokens.numel())
