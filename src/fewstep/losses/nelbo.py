"""The training loss of a masked diffusion model: its negative evidence lower bound (NELBO).

Per sequence: E_t[ -alpha'(t) / (1 - alpha(t)) * sum over masked positions of -log p(x0) ], in nats.
Source: Sahoo et al., 2024, equation 10.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.masking import corrupt, low_discrepancy_times
from fewstep.diffusion.schedule import Schedule
from fewstep.losses.fused_head import LinearHead, head_cross_entropy


@runtime_checkable
class DenoiserNetwork(Protocol):
    """What losses, samplers and distillation ask of a denoiser."""

    @property
    def mask_token_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def output_head(self) -> LinearHead: ...
    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor: ...
    def head(self, hidden_rows: Tensor) -> Tensor: ...


def bound_weights(times: Tensor, *, schedule: Schedule) -> Tensor:
    """Return -alpha'(t) / (1 - alpha(t)), the weight of a masked position at each time."""
    return -schedule.alpha_derivative(times) / (1 - schedule.alpha(times))


def nelbo_sum(
    denoiser: DenoiserNetwork, clean_BL: Tensor, corrupted_BL: Tensor, times_B: Tensor, *, schedule: Schedule
) -> Tensor:
    """Return the sum over the batch of the one-sample bound, in nats; differentiable."""
    masked_BL = corrupted_BL == denoiser.mask_token_id
    rows_ND = denoiser.hidden(corrupted_BL, masked_BL)
    weights_N = bound_weights(times_B, schedule=schedule)[:, None].expand(masked_BL.shape)[masked_BL]
    return head_cross_entropy(rows_ND, denoiser.output_head, clean_BL[masked_BL], weights_N)


@dataclass(frozen=True, kw_only=True)
class NelboObjective:
    """Trains a denoiser: loss in nats a token, over low-discrepancy times of the global batch."""

    mask_token_id: int
    schedule: Schedule
    seed: int

    def prepare(self, tokens_BL: Tensor, training_step: int) -> dict[str, Tensor]:
        """Return the corrupted global batch; each tensor begins with B."""
        generator = seeds.generator(self.seed, training_step)
        times_B = low_discrepancy_times(len(tokens_BL), generator)
        corrupted_BL = corrupt(
            tokens_BL,
            times_B,
            schedule=self.schedule,
            mask_token_id=self.mask_token_id,
            generator=generator,
        )
        return {"clean": tokens_BL, "corrupted": corrupted_BL, "times": times_B}

    def normalizer(self, batch: dict[str, Tensor]) -> int:
        """Return what the loss sum over `batch` is divided by: its tokens that are not given."""
        return int((batch["clean"] >= 0).sum())

    def loss_sum(self, model: DenoiserNetwork, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss summed over a part of a prepared batch."""
        return nelbo_sum(model, batch["clean"], batch["corrupted"], batch["times"], schedule=self.schedule)
