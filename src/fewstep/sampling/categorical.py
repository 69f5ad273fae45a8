"""The one categorical draw: the first token whose cumulative probability exceeds a uniform number.

The sums and the random number are float64, so this is exact far into the tail, where float32 noise
cannot reach, and it costs one random number a token. Each sequence draws from its own generator, so its
tokens do not depend on its batch.
"""

from itertools import groupby

import torch
from torch import Tensor


def draw(logits_NV: Tensor, generators_N: list[torch.Generator]) -> Tensor:
    """Return one token id for each row of float32 logits (N, V), row n drawn by `generators_N[n]`.

    A logit of -inf is never drawn.

    Raises:
        ValueError: if a row has no finite maximum, as after a training that diverged.
    """
    maxima_N1 = logits_NV.amax(-1, keepdim=True)
    if not torch.isfinite(maxima_N1).all():
        raise ValueError("the network's logits are not finite; its weights are damaged or diverged")
    cumulative_NV = (logits_NV - maxima_N1).exp_().cumsum(-1, dtype=torch.float64)
    total_N1 = cumulative_NV[:, -1:]
    threshold_N1 = uniform(generators_N).to(total_N1.device)[:, None] * total_N1
    below_total_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))  # the product may round up to it
    return torch.searchsorted(cumulative_NV, threshold_N1.minimum(below_total_N1), right=True).squeeze(1)


def uniform(generators_N: list[torch.Generator]) -> Tensor:
    """Return a float64 number in [0, 1) from each generator in turn, (N,)."""
    runs = [
        torch.rand(len(list(run)), generator=generator, dtype=torch.float64, device=generator.device)
        for generator, run in groupby(generators_N)
    ]
    return torch.cat(runs)
