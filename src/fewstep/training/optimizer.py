"""AdamW, its learning-rate schedule, and the exponential moving average of the weights."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up; the published MDLM and SDTT settings are the defaults."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    warmup: int = 500
    """Training steps over which the learning rate rises from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After warm-up, stay constant or fall along a cosine to `final_fraction` of the peak."""
    final_fraction: float = 0.1
    """Where cosine decay ends."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors and embeddings have none."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""

    def learning_rate_at(self, training_step: int, training_steps: int) -> float:
        """Return the learning rate of update number `training_step` (from 0) of `training_steps`."""
        rate = self.learning_rate * min(1.0, (training_step + 1) / max(self.warmup, 1))
        if self.decay == "constant" or training_step < self.warmup:
            return rate
        progress = (training_step - self.warmup) / max(training_steps - self.warmup, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return rate * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimizer for the parameters of `model`; fused, it makes no copies of them."""
        decayed, plain = [], []
        for name, parameter in trained(model).items():
            is_matrix = parameter.ndim > 1 and "embed" not in name
            (decayed if is_matrix else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), fused=True)


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that has made no update allocate its moments; the weights stay as they are."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in (one for one in group["params"] if one.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` that a run trains, averages and saves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class ExponentialMovingAverage:
    """The running average of a model's weights: average = d * average + (1 - d) * weights.

    d is `decay`, and (1 + n) / (10 + n) at update n while that is smaller, so that the first weights
    are forgotten in short runs as in long ones.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().clone().float() for name, p in trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        """Move the average towards the weights of `model` after update number `num_updates`."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        weights = [parameter.float() for parameter in trained(model).values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
