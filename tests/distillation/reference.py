"""The algorithm of Self-Distillation Through Time, one position after another."""

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule


def draw_by_hand(logits_V: Tensor, uniform: float) -> int:
    """Return the first token whose cumulative probability exceeds `uniform`."""
    weights = (logits_V.double() - logits_V.max()).exp().tolist()
    reached = 0.0
    for token, weight in enumerate(weights):
        reached += weight
        if reached > uniform * sum(weights):
            return token
    raise AssertionError("probabilities sum to less than a number below 1")


def targets_by_hand(
    teacher,
    corrupted_BL: Tensor,
    times_B: Tensor,
    *,
    delta: float,
    teacher_steps: int,
    schedule: Schedule,
    generators: list[torch.Generator],
) -> tuple[dict[tuple[int, int], Tensor], list[int]]:
    """Return the target row of each masked (sequence, position), and each sequence's passes."""
    targets: dict[tuple[int, int], Tensor] = {}
    passes = []
    length = corrupted_BL.shape[1]
    for row, generator in enumerate(generators):
        z = corrupted_BL[row].clone()
        count = 0
        for i in range(teacher_steps):
            masked = [position for position in range(length) if z[position] == teacher.mask_token_id]
            if not masked:
                break
            prediction_LD = teacher.hidden(z[None])[0]
            count += 1
            if i == teacher_steps - 1:  # unmasked or not, the target is this pass's
                for position in masked:
                    targets[row, position] = prediction_LD[position]
                break
            alpha_t, alpha_s = (
                schedule.alpha((times_B[row] - j * delta).clamp_min(0)).item() for j in (i, i + 1)
            )
            rho = (alpha_s - alpha_t) / (1 - alpha_t)
            coins = torch.rand(length, generator=generator, dtype=torch.float64).tolist()
            unmasking = [position for position in masked if coins[position] < rho]
            for position in unmasking:
                targets[row, position] = prediction_LD[position]
                uniform = torch.rand(1, generator=generator, dtype=torch.float64).item()
                z[position] = draw_by_hand(teacher.head(prediction_LD[position]), uniform)
        passes.append(count)
    return targets, passes
