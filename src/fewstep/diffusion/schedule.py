"""Masking schedules: the probability alpha(t) that a token is still clean at time t.

Each falls from alpha(0) = 1 to alpha(1) = 0 exactly. Times are float64 tensors of any shape.
Source: Sahoo et al., 2024, "Simple and Effective Masked Diffusion Language Models", appendix on
noise schedules, without their offset that keeps alpha(1) above 0.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """What corruption, losses and samplers ask of a masking schedule."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the probability that a token is clean at time `t` in [0, 1]."""
        ...

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Return d alpha / dt at time `t`; at most 0."""
        ...

    def inverse(self, alpha: Tensor) -> Tensor:
        """Return the time at which a token is clean with probability `alpha`."""
        ...


@dataclass(frozen=True)
class LogLinear:
    """alpha(t) = 1 - t, the usual choice: -log alpha = -log(1 - t) is "log-linear"."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = cos(pi t / 2), written as a sine so that alpha(1) is exactly 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.cos(0.5 * math.pi * (1 - t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - torch.asin(alpha) / (0.5 * math.pi)


@dataclass(frozen=True)
class Linear:
    """-log alpha grows linearly to `total_noise`, rescaled so that alpha(1) is exactly 0.

    alpha(t) = (exp(-c t) - exp(-c)) / (1 - exp(-c)) with c = `total_noise`.
    """

    total_noise: float = 5.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.expm1(self.total_noise * (1 - t)) / math.expm1(self.total_noise)

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -self.total_noise * torch.exp(self.total_noise * (1 - t)) / math.expm1(self.total_noise)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - torch.log1p(alpha * math.expm1(self.total_noise)) / self.total_noise


ScheduleName = Literal["log-linear", "cosine", "linear"]
SCHEDULES: dict[str, Schedule] = {"log-linear": LogLinear(), "cosine": Cosine(), "linear": Linear()}
