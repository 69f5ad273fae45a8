"""Targets of Self-Distillation Through Time: what a teacher predicts over several small steps.

Source: Deschenaux and Gulcehre, 2025, "Beyond Autoregression: Fast LLMs via Self-Distillation Through
Time", algorithm 1.
"""

import torch
from torch import Tensor

from fewstep.diffusion.masking import unmask_probability
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.time_grid import rollout_times
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.sampling.unmasking import bernoulli_positions, draw_tokens, row_generators


@torch.inference_mode()
def teacher_targets(
    teacher: DenoiserNetwork,
    corrupted_BL: Tensor,
    times_B: Tensor,
    *,
    delta: float,
    teacher_steps: int,
    schedule: Schedule,
    generators: list[torch.Generator],
    first_rows_ND: Tensor | None = None,
) -> Tensor:
    """Return one target for each masked position of `corrupted_BL`, as the teacher's hidden row (N, D).

    From time t the teacher takes `teacher_steps` steps of size `delta`. A position that unmasks in a
    step has the prediction of that step's pass as its target; those never unmasked have that of the
    last pass. Rows are in the order of `hidden[corrupted_BL == mask]`. Each pass computes hidden rows
    only where a target is recorded, and sequences that record none are left out of it.

    Args:
        corrupted_BL: ids at time `times_B` of each row.
        generators: one for each row.
        first_rows_ND: the teacher's hidden rows of `corrupted_BL` at its masked positions, if known.
    """
    mask = teacher.mask_token_id
    tokens_BL = corrupted_BL.clone()
    masked_at_start_BL = corrupted_BL == mask
    times = rollout_times(times_B, delta=delta, teacher_steps=teacher_steps)
    passes: list[tuple[Tensor, Tensor]] = []
    for number in range(teacher_steps):
        recorded_BL = tokens_BL == mask
        is_last = number == teacher_steps - 1
        if not is_last:
            rho_B = unmask_probability(times[number], times[number + 1], schedule=schedule)
            recorded_BL = bernoulli_positions(recorded_BL, rho_B, generators)
        if number == 0 and first_rows_ND is not None:
            rows_ND = first_rows_ND[recorded_BL[masked_at_start_BL]]
        else:
            rows_ND = teacher.hidden(tokens_BL, recorded_BL)
        passes.append((recorded_BL, rows_ND))
        if not is_last and recorded_BL.any():
            tokens_BL[recorded_BL] = draw_tokens(teacher, rows_ND, row_generators(recorded_BL, generators))
    return assembled(passes, masked_at_start_BL)


def assembled(passes: list[tuple[Tensor, Tensor]], masked_BL: Tensor) -> Tensor:
    """Return the rows that passes recorded (each a mask and its rows) in the order of `masked_BL`."""
    place_BL = masked_BL.flatten().cumsum(0).view(masked_BL.shape) - 1
    width = passes[0][1].shape[-1]
    targets_ND = passes[0][1].new_empty(int(masked_BL.sum()), width)
    for recorded_BL, rows_ND in passes:
        targets_ND[place_BL[recorded_BL]] = rows_ND
    return targets_ND
