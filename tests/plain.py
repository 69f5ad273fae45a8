"""The plain sampler and the plain SDTT training step, as code before this package does them.

Logits at every position in every step, noise over all of them, and tensors of size B x L x V. They draw
from the same distribution and have the same expected loss as the package, so that `fewstep bench
sampling` and `fewstep bench distill` compare equals. It is written the obvious way, and no slower than
that: one logarithm for each random number, and no draw after the teacher's last pass.

The noise is float64 throughout. In float32 the uniform numbers have 24 bits, so the Gumbel noise made of
them is cut off and draws from a distribution of lower entropy; that would be no equal.
"""

import torch
from torch import Tensor

from fewstep.diffusion.masking import unmask_probability
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.time_grid import rollout_times, time_grid


def race(weights_BLC: Tensor, generator: torch.Generator) -> Tensor:
    """Return a category (B, L) drawn in proportion to float64 `weights_BLC`.

    argmax(weight / exponential noise) is argmax(log weight + Gumbel noise), the Gumbel-max trick: the
    logarithm of the one is the other.
    """
    noise_BLC = torch.rand(
        weights_BLC.shape, generator=generator, dtype=torch.float64, device=generator.device
    )
    return (weights_BLC / -noise_BLC.to(weights_BLC.device).log()).argmax(-1)


def plain_step(
    log_p_BLV: Tensor, tokens_BL: Tensor, rho_B: Tensor, mask: int, generator: torch.Generator
) -> Tensor:
    """Return the tokens after one step: each mask stays with probability 1 - rho, else becomes a token.

    The mask is one more category of the draw, and every position draws, masked or not.
    """
    rho_B11 = rho_B.to(tokens_BL.device)[:, None, None]
    vocab = log_p_BLV.shape[-1]
    stay_BL1 = (1 - rho_B11).expand(*tokens_BL.shape, 1)
    weights_BLC = torch.cat([log_p_BLV.double().exp() * rho_B11, stay_BL1], dim=-1)
    drawn_BL = race(weights_BLC, generator)
    drawn_BL = torch.where(drawn_BL == vocab, mask, drawn_BL)
    return torch.where(tokens_BL == mask, drawn_BL, tokens_BL)


@torch.inference_mode()
def plain_unmask(
    denoiser, tokens_BL: Tensor, *, num_steps: int, schedule: Schedule, generator: torch.Generator
) -> Tensor:
    """Return the finished batch: every step is a full pass with logits and noise at every position."""
    times = time_grid(num_steps)
    for number in range(num_steps):
        log_p_BLV = denoiser.head(denoiser.hidden(tokens_BL)).log_softmax(-1)
        rho = unmask_probability(times[number], times[number + 1], schedule=schedule)
        tokens_BL = plain_step(
            log_p_BLV, tokens_BL, rho.expand(len(tokens_BL)), denoiser.mask_token_id, generator
        )
    return tokens_BL


@torch.no_grad()
def plain_targets(
    teacher,
    corrupted_BL: Tensor,
    times_B: Tensor,
    *,
    delta: float,
    teacher_steps: int,
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """Return the targets of SDTT as log-probabilities (B, L, V); where no mask was, they mean nothing."""
    mask = teacher.mask_token_id
    times = rollout_times(times_B, delta=delta, teacher_steps=teacher_steps)
    tokens_BL = corrupted_BL
    for number in range(teacher_steps):
        log_p_BLV = teacher.head(teacher.hidden(tokens_BL)).log_softmax(-1)
        if number == 0:
            targets_BLV = log_p_BLV
        else:  # who is masked now, or was until this pass, has this pass's prediction
            targets_BLV = torch.where((tokens_BL == mask)[..., None], log_p_BLV, targets_BLV)
        if number < teacher_steps - 1:
            rho_B = unmask_probability(times[number], times[number + 1], schedule=schedule)
            tokens_BL = plain_step(log_p_BLV, tokens_BL, rho_B, mask, generator)
    return targets_BLV


def plain_loss(student, corrupted_BL: Tensor, targets_BLV: Tensor) -> Tensor:
    """Return the mean KL(student || target) over masked positions, a differentiable scalar."""
    log_p_BLV = student.head(student.hidden(corrupted_BL)).log_softmax(-1)
    divergence_BL = (log_p_BLV.exp() * (log_p_BLV - targets_BLV)).sum(-1)
    masked_BL = corrupted_BL == student.mask_token_id
    return (divergence_BL * masked_BL).sum() / masked_BL.sum()


def plain_training_step(
    student,
    teacher,
    optimizer: torch.optim.Optimizer,
    corrupted_BL: Tensor,
    times_B: Tensor,
    *,
    delta: float,
    teacher_steps: int,
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """Make one training step of `student`; return its loss."""
    targets_BLV = plain_targets(
        teacher,
        corrupted_BL,
        times_B,
        delta=delta,
        teacher_steps=teacher_steps,
        schedule=schedule,
        generator=generator,
    )
    loss = plain_loss(student, corrupted_BL, targets_BLV)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    return loss.detach()
