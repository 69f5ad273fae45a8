"""The loss of a round: its value, its parts, its passes, its variance, and the probe."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective, DivergenceProbe
from fewstep.models.language_model import Denoiser
from tests import reference

TOKENS_BL = torch.randint(0, 29, (8, 24), generator=torch.Generator().manual_seed(0))


def moved(model: Denoiser, seed: int, size: float) -> Denoiser:
    """Return a copy of `model` with noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return copied


@pytest.fixture
def student(tiny_denoiser: Denoiser) -> Denoiser:
    return moved(tiny_denoiser, seed=1, size=0.05)


@pytest.fixture
def objective(tiny_denoiser: Denoiser) -> DistillationObjective:
    return DistillationObjective(
        teacher=tiny_denoiser,
        delta=0.25,
        teacher_steps=2,
        teacher_rollouts=1,
        divergence="reverse_kl",
        schedule=SCHEDULES["log-linear"],
        seed=0,
    )


@pytest.mark.parametrize("divergence", list(reference.DIVERGENCES))
@pytest.mark.parametrize("teacher_rollouts", [1, 3])
@torch.no_grad()
def test_loss_is_the_divergence_from_each_rollouts_targets(
    objective: DistillationObjective, student: Denoiser, divergence: str, teacher_rollouts: int
) -> None:
    objective = replace(objective, divergence=divergence, teacher_rollouts=teacher_rollouts)
    batch = objective.prepare(TOKENS_BL, 3)
    masked_BL = batch["corrupted"] == 29
    student_logits = student.head(student.hidden(batch["corrupted"])[masked_BL])
    rollouts = objective.targets(batch)
    assert len(rollouts) == teacher_rollouts
    expected = 0.0
    for targets in rollouts:
        rows = reference.DIVERGENCES[divergence](student_logits, objective.teacher.head(targets))
        expected += rows.sum().item() / teacher_rollouts
    assert objective.loss_sum(student, batch).item() == pytest.approx(expected, rel=1e-4)
    assert objective.normalizer(batch) == masked_BL.sum().item()


def test_gradient_is_that_of_the_loss(objective: DistillationObjective, student: Denoiser) -> None:
    batch = objective.prepare(TOKENS_BL, 0)
    objective.loss_sum(student, batch).backward()
    masked_BL = batch["corrupted"] == 29
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    logits = student.head(student.hidden(batch["corrupted"])[masked_BL])
    (targets,) = objective.targets(batch)
    teacher_logits = objective.teacher.head(targets.clone()).detach()
    reference.reverse_kl(logits, teacher_logits).sum().backward()
    for gradient, parameter in zip(gradients, student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=2e-3, atol=2e-3)
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


@torch.no_grad()
def test_micro_batches_sum_to_the_batch(objective: DistillationObjective, student: Denoiser) -> None:
    """Targets are those of the sequence, not of the part of the batch that it is in."""
    objective = replace(objective, teacher_rollouts=2)
    batch = objective.prepare(TOKENS_BL, 1)
    whole = objective.loss_sum(student, batch).item()
    parts = [{key: value[i : i + 3] for key, value in batch.items()} for i in (0, 3, 6)]
    assert sum(objective.loss_sum(student, part).item() for part in parts) == pytest.approx(whole, rel=1e-5)
    assert sum(objective.normalizer(part) for part in parts) == objective.normalizer(batch)


def test_training_steps_are_corrupted_differently_and_repeatably(objective: DistillationObjective) -> None:
    first, again, second = (objective.prepare(TOKENS_BL, step) for step in (0, 0, 1))
    assert torch.equal(first["corrupted"], again["corrupted"])
    assert torch.equal(first["times"], again["times"])
    assert not torch.equal(first["corrupted"], second["corrupted"])
    masked_BL = first["corrupted"] == 29
    assert torch.equal(first["corrupted"][~masked_BL], TOKENS_BL[~masked_BL])
    by_time = first["times"].argsort()
    shares = masked_BL.double().mean(1)[by_time]
    assert (shares - first["times"][by_time]).abs().max() < 0.35, "masked in the proportion of their times"
    assert torch.equal((first["times"] * 8).floor().sort().values, torch.arange(8.0).double())


@pytest.mark.parametrize(
    ("teacher_steps", "teacher_rollouts", "passes"), [(2, 1, 2), (2, 4, 5), (3, 1, 3), (3, 4, 9)]
)
def test_rollouts_share_the_first_pass(
    objective: DistillationObjective, teacher_steps: int, teacher_rollouts: int, passes: int
) -> None:
    """Steps so long that each unmasks something, and passes that record nothing are not made at all."""
    objective = replace(objective, delta=0.2, teacher_steps=teacher_steps, teacher_rollouts=teacher_rollouts)
    batch = objective.prepare(TOKENS_BL, 0)
    calls: list[Tensor] = []
    first_block = objective.teacher.backbone.blocks[0]
    first_block.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    objective.targets(batch)
    assert len(calls) == passes == 1 + teacher_rollouts * (teacher_steps - 1)


@torch.no_grad()
def test_rollouts_lower_the_variance_of_the_loss(objective: DistillationObjective, student: Denoiser) -> None:
    """Over rollouts of one corrupted batch the variance halves with two; the mean stays."""
    batch = objective.prepare(TOKENS_BL, 0)
    losses: dict[int, Tensor] = {}
    for teacher_rollouts in (1, 2):
        averaged = replace(objective, teacher_rollouts=teacher_rollouts)
        values = []
        for other_draws in range(60):
            batch["training_step"].fill_(1000 * teacher_rollouts + other_draws)
            values.append(averaged.loss_sum(student, batch))
        losses[teacher_rollouts] = torch.stack(values).double()
    assert 0.3 < (losses[2].var() / losses[1].var()).item() < 0.75
    error = (losses[1].var() / 60 + losses[2].var() / 60).sqrt().item()
    assert losses[1].mean().item() == pytest.approx(losses[2].mean().item(), abs=4 * error)


def test_probe_measures_the_same_twice(objective: DistillationObjective, student: Denoiser) -> None:
    probe = DivergenceProbe(objective, TOKENS_BL, 2)
    first = probe.divergence(student)
    torch.rand(5)  # global random numbers have no part in it
    assert probe.divergence(student) == first
    assert DivergenceProbe(objective, TOKENS_BL, 2).divergence(student) == first
    assert DivergenceProbe(objective, TOKENS_BL, 3).divergence(student) != first
    assert DivergenceProbe(replace(objective, seed=9), TOKENS_BL, 2).divergence(student) == first


def test_probe_is_the_mean_loss_over_its_positions(
    objective: DistillationObjective, student: Denoiser
) -> None:
    with_the_probes_seed = replace(objective, seed=2)
    batch = with_the_probes_seed.prepare(TOKENS_BL, 0)
    expected = with_the_probes_seed.loss_sum(student, batch).item() / with_the_probes_seed.normalizer(batch)
    assert DivergenceProbe(objective, TOKENS_BL, 2).divergence(student) == pytest.approx(expected, rel=1e-6)


def test_probe_falls_in_a_short_training(objective: DistillationObjective, student: Denoiser) -> None:
    """Corruption and targets of training are others than those of the probe."""
    probe = DivergenceProbe(replace(objective, teacher_rollouts=4), TOKENS_BL, 2)
    begin = probe.divergence(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for training_step in range(40):
        batch = objective.prepare(TOKENS_BL, training_step)
        loss = objective.loss_sum(student, batch) / objective.normalizer(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert probe.divergence(student) < 0.7 * begin
