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
    first_hidden_BLD: Tensor | None = None,
) -> Tensor:
    """Return one target for each masked position of `corrupted_BL`, as the teacher's hidden row (N, D).

    From time t the teacher takes `teacher_steps` steps of size `delta`. A position that unmasks in a
    step has the prediction of that step's pass as its target; those never unmasked have that of the
    last pass. Rows are in the order of `hidden[corrupted_BL == mask]`.

    Args:
        corrupted_BL: ids at time `times_B` of each row.
        generators: one for each row.
        first_hidden_BLD: the teacher's hidden rows of `corrupted_BL`, if already computed.
    """
    mask = teacher.mask_token_id
    tokens_BL = corrupted_BL.clone()
    times = rollout_times(times_B, delta=delta, teacher_steps=teacher_steps)
    if not (tokens_BL == mask).any():
        return teacher.hidden(tokens_BL[:0]).flatten(0, 1)
    targets_BLD: Tensor | None = None
    for number in range(teacher_steps):
        masked_BL = tokens_BL == mask
        active = masked_BL.any(1)
        if not active.any():
            break
        if number == 0 and first_hidden_BLD is not None:
            hidden_BLD = first_hidden_BLD
        else:
            hidden_BLD = hidden_of(teacher, tokens_BL, active)
        if targets_BLD is None:
            targets_BLD = torch.zeros_like(hidden_BLD)
        if number == teacher_steps - 1:
            targets_BLD[masked_BL] = hidden_BLD[masked_BL]
            break
        rho_B = unmask_probability(times[number], times[number + 1], schedule=schedule)
        unmasking_BL = bernoulli_positions(masked_BL, rho_B, generators)
        targets_BLD[unmasking_BL] = hidden_BLD[unmasking_BL]
        if unmasking_BL.any():
            drawn, _ = draw_tokens(
                teacher, hidden_BLD[unmasking_BL], row_generators(unmasking_BL, generators)
            )
            tokens_BL[unmasking_BL] = drawn
    assert targets_BLD is not None
    return targets_BLD[corrupted_BL == mask]


def hidden_of(teacher: DenoiserNetwork, tokens_BL: Tensor, active_B: Tensor) -> Tensor:
    """Return the hidden rows (B, L, D) of the active rows; other rows are zero and cost nothing."""
    if active_B.all():
        return teacher.hidden(tokens_BL)
    active_hidden = teacher.hidden(tokens_BL[active_B])
    hidden_BLD = active_hidden.new_zeros(*tokens_BL.shape, active_hidden.shape[-1])
    hidden_BLD[active_B] = active_hidden
    return hidden_BLD
