"""Distilling answers to prompts: targets at masked responses only, the same in any batch."""

import copy

import pytest
import torch

from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective, DivergenceProbe
from fewstep.models.language_model import Denoiser
from tests import reference

IDS = torch.randint(0, 29, (6, 20), generator=torch.Generator().manual_seed(0))
GIVEN = torch.arange(20) < torch.tensor([2, 15, 9, 4, 18, 11])[:, None]
TOKENS = torch.where(GIVEN, -1 - IDS, IDS)


@pytest.fixture
def student(tiny_denoiser: Denoiser) -> Denoiser:
    copied = copy.deepcopy(tiny_denoiser)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return copied


@pytest.fixture
def objective(tiny_denoiser: Denoiser) -> DistillationObjective:
    return DistillationObjective(
        teacher=tiny_denoiser,
        delta=0.25,
        teacher_steps=2,
        teacher_rollouts=2,
        divergence="reverse_kl",
        schedule=SCHEDULES["log-linear"],
        seed=0,
    )


@torch.no_grad()
def test_targets_are_at_masked_responses_and_normalize_the_loss(
    objective: DistillationObjective, student: Denoiser
) -> None:
    batch = objective.prepare(TOKENS, 3)
    masked = batch["corrupted"] == 29
    assert not (masked & GIVEN).any() and masked.any(1).sum() >= 4
    assert torch.equal(batch["corrupted"][~masked], IDS[~masked])
    assert objective.normalizer(batch) == masked.sum().item()
    logits = student.head(student.hidden(batch["corrupted"])[masked])
    expected = sum(
        reference.reverse_kl(logits, objective.teacher.head(targets)).sum().item() / 2
        for targets in objective.targets(batch)
    )
    assert objective.loss_sum(student, batch).item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_row_counts_the_same_whatever_its_batch_mates(
    objective: DistillationObjective, student: Denoiser
) -> None:
    batch = objective.prepare(TOKENS, 1)
    whole = objective.loss_sum(student, batch).item()
    rows = [{key: value[b : b + 1] for key, value in batch.items()} for b in range(6)]
    alone = [objective.loss_sum(student, row).item() for row in rows]
    assert sum(alone) == pytest.approx(whole, rel=1e-5)
    for row, targets in zip(rows, _targets_by_row(objective, batch), strict=True):
        torch.testing.assert_close(objective.targets(row)[0], targets, rtol=1e-5, atol=1e-5)


def _targets_by_row(objective: DistillationObjective, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    counts = (batch["corrupted"] == 29).sum(1).tolist()
    return list(objective.targets(batch)[0].split(counts))


def test_probe_counts_responses(objective: DistillationObjective, student: Denoiser) -> None:
    probe = DivergenceProbe(objective, TOKENS, 2)
    assert probe.num_positions == ((probe.corrupted_BL == 29) & ~GIVEN).sum().item() > 0
    assert probe.divergence(student) > 0
