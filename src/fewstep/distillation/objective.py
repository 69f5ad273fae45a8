"""The loss of a round: the student's divergence from the targets of a frozen teacher."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.masking import corrupt, low_discrepancy_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distillation.targets import teacher_targets
from fewstep.losses.divergences import DIVERGENCES
from fewstep.losses.fused_head import head_divergence
from fewstep.losses.nelbo import DenoiserNetwork

CORRUPTION, ROLLOUT = 0, 1


@dataclass(frozen=True, kw_only=True)
class DistillationObjective:
    """Trains a student to predict in one step what `teacher` does in `teacher_steps` of size `delta`.

    The loss is the mean divergence over the masked positions of the global batch and the rollouts.
    """

    teacher: Any
    delta: float
    teacher_steps: int
    teacher_rollouts: int
    divergence: str
    schedule: Schedule
    seed: int

    def prepare(self, tokens_BL: Tensor, training_step: int) -> dict[str, Tensor]:
        """Return the corrupted global batch; each tensor begins with B."""
        generator = seeds.generator(self.seed, CORRUPTION, training_step)
        times_B = low_discrepancy_times(len(tokens_BL), generator)
        corrupted_BL = corrupt(
            tokens_BL,
            times_B,
            schedule=self.schedule,
            mask_token_id=self.teacher.mask_token_id,
            generator=generator,
        )
        return {
            "corrupted": corrupted_BL,
            "times": times_B,
            "training_step": torch.full((len(tokens_BL),), training_step),
            "sequence": torch.arange(len(tokens_BL)),
        }

    def normalizer(self, batch: dict[str, Tensor]) -> int:
        """Return what the loss sum over `batch` is divided by: its masked positions."""
        return int((batch["corrupted"] == self.teacher.mask_token_id).sum())

    def targets(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Return each rollout's targets for a part of a prepared batch, (N, D) each."""
        corrupted_BL = batch["corrupted"]
        first_rows_ND = None
        if self.teacher_rollouts > 1:
            with torch.inference_mode():
                masked_BL = corrupted_BL == self.teacher.mask_token_id
                first_rows_ND = self.teacher.hidden(corrupted_BL, masked_BL)
        places = list(zip(batch["training_step"].tolist(), batch["sequence"].tolist(), strict=True))
        return [
            teacher_targets(
                self.teacher,
                corrupted_BL,
                batch["times"],
                delta=self.delta,
                teacher_steps=self.teacher_steps,
                schedule=self.schedule,
                generators=[seeds.generator(self.seed, ROLLOUT, *place, rollout) for place in places],
                first_rows_ND=first_rows_ND,
            )
            for rollout in range(self.teacher_rollouts)
        ]

    def loss_sum(self, model: DenoiserNetwork, batch: dict[str, Tensor]) -> Tensor:
        """Return the divergence summed over a part of a prepared batch, averaged over rollouts."""
        return self.divergence_sum(model, batch["corrupted"], self.targets(batch))

    def divergence_sum(self, model: DenoiserNetwork, corrupted_BL: Tensor, targets: list[Tensor]) -> Tensor:
        """Return the divergence from given targets summed over masked positions."""
        masked_BL = corrupted_BL == self.teacher.mask_token_id
        rows_ND = model.hidden(corrupted_BL, masked_BL)
        total = head_divergence(
            rows_ND.repeat(len(targets), 1),
            model.output_head,
            torch.cat(targets),
            self.teacher.output_head,
            DIVERGENCES[self.divergence],
        )
        return total / len(targets)


class DivergenceProbe:
    """The divergence on a fixed corruption with fixed targets, which shows progress without noise.

    The training loss is mostly the randomness of the targets themselves, which no student can remove.
    """

    def __init__(self, objective: DistillationObjective, tokens_BL: Tensor, seed: int) -> None:
        fixed = DistillationObjective(**{**vars(objective), "seed": seed})
        batch = fixed.prepare(tokens_BL, 0)
        self.objective = fixed
        self.corrupted_BL = batch["corrupted"]
        self.targets = fixed.targets(batch)
        self.num_positions = fixed.normalizer(batch)

    @torch.no_grad()
    def divergence(self, model: DenoiserNetwork) -> float:
        """Return the mean divergence of `model` at the probe's masked positions."""
        total = self.objective.divergence_sum(model, self.corrupted_BL, self.targets)
        return total.item() / self.num_positions
