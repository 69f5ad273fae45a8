"""Temperature, top-k and top-p: ways to sharpen a distribution before a token is drawn from it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sharpening:
    """Applied in the order temperature, top-k, top-p; the defaults leave the distribution alone."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int = 0
    """Draw among this many most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens that hold at least this probability."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more, and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def __call__(self, logits_NV: Tensor) -> Tensor:
        """Return sharpened logits (N, V); excluded tokens are -inf."""
        if self.temperature == 0:
            return keep_top_k(logits_NV, 1)
        if self.temperature != 1:
            maxima = logits_NV.amax(-1, keepdim=True)  # kept at 0, so that no temperature overflows
            logits_NV = (logits_NV - maxima) / self.temperature
        if 0 < self.top_k < logits_NV.shape[-1]:
            logits_NV = keep_top_k(logits_NV, self.top_k)
        if self.top_p < 1:
            logits_NV = keep_top_p(logits_NV, self.top_p)
        return logits_NV


def keep_top_k(logits_NV: Tensor, k: int) -> Tensor:
    """Return logits with all but the `k` largest of each row at -inf."""
    values, tokens = logits_NV.topk(k, dim=-1)
    return torch.full_like(logits_NV, -torch.inf).scatter(-1, tokens, values)


def keep_top_p(logits_NV: Tensor, p: float) -> Tensor:
    """Return logits with all but the nucleus of probability `p` of each row at -inf.

    A token is in the nucleus if the more probable ones hold less than `p` (Holtzman et al., 2020).
    """
    ordered, tokens = logits_NV.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(before >= p, -torch.inf)
    return torch.empty_like(logits_NV).scatter(-1, tokens, ordered)
