"""Losses between rows of logits and their targets, each with its gradient in closed form.

Each function takes the student's log-probabilities `log_p` (N, V) in float32, and the target: the
teacher's log-probabilities `log_q` (N, V), or token ids (N,) for the cross-entropy. It returns the
loss of each row (N,) and the gradient of that row's loss by the student's LOGITS (N, V).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

RowLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(log_p: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """-log p[token]."""
    row_loss = -log_p.gather(1, tokens[:, None]).squeeze(1)
    gradient = log_p.exp()
    gradient.scatter_add_(1, tokens[:, None], torch.full_like(gradient[:, :1], -1.0))
    return row_loss, gradient


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p (log p - log q)."""
    p = log_p.exp()
    log_ratio = log_p - log_q
    row_loss = (p * log_ratio).sum(1)
    return row_loss, p * (log_ratio - row_loss[:, None])


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q (log q - log p)."""
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(1), log_p.exp() - q


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """1/2 KL(p || m) + 1/2 KL(q || m) with m = (p + q) / 2."""
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    log_p_ratio = log_p - log_m
    p_part = (p * log_p_ratio).sum(1)
    row_loss = 0.5 * (p_part + (q * (log_q - log_m)).sum(1))
    return row_loss, 0.5 * p * (log_p_ratio - p_part[:, None])


def total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """1/2 sum |p - q|, on probabilities."""
    p = log_p.exp()
    difference = p - log_q.exp()
    sign = difference.sign()
    return 0.5 * difference.abs().sum(1), 0.5 * p * (sign - (p * sign).sum(1, keepdim=True))


def log_probability_mse(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """mean over V of (log p - log q)^2."""
    difference = log_p - log_q
    by_log_p = difference * (2.0 / log_p.shape[1])
    return difference.square().mean(1), by_log_p - log_p.exp() * by_log_p.sum(1, keepdim=True)


DivergenceName = Literal["reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "mse"]
DIVERGENCES: dict[str, RowLoss] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "mse": log_probability_mse,
}
