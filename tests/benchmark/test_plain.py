"""The plain implementations are equals: the same distribution of texts, the same loss and gradients."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.benchmark import plain_code
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective
from fewstep.models.language_model import Denoiser
from tests import plain
from tests.sampling.reference import MASK, State, TableDenoiser, ancestral_joint, chi_square_p_value

NUM_SAMPLES = 10_000
ALL_MASKED = (MASK, MASK, MASK)
SCHEDULE = SCHEDULES["log-linear"]
TOKENS_BL = torch.randint(0, 29, (6, 24), generator=torch.Generator().manual_seed(0))


def alphas(num_steps: int, schedule: str) -> list[float]:
    times = torch.tensor([1 - step / num_steps for step in range(num_steps + 1)], dtype=torch.float64)
    return SCHEDULES[schedule].alpha(times).tolist()


def sampled(num_steps: int, schedule: str, start: State) -> Tensor:
    return plain.plain_unmask(
        TableDenoiser(),
        torch.tensor([start] * NUM_SAMPLES),
        num_steps=num_steps,
        schedule=SCHEDULES[schedule],
        generator=seeds.generator(0),
    )


@pytest.mark.parametrize(
    ("num_steps", "schedule", "start"),
    [
        (1, "log-linear", ALL_MASKED),
        (2, "log-linear", ALL_MASKED),
        (4, "log-linear", ALL_MASKED),
        (3, "cosine", ALL_MASKED),
        (3, "log-linear", (MASK, 1, MASK)),
    ],
)
def test_the_plain_sampler_is_exact(num_steps: int, schedule: str, start: State) -> None:
    joint = ancestral_joint(TableDenoiser(), start, alphas(num_steps, schedule))
    assert chi_square_p_value(sampled(num_steps, schedule, start), joint) > 1e-3


def test_the_chi_square_tells_other_numbers_of_steps() -> None:
    samples = sampled(2, "log-linear", ALL_MASKED)
    for num_steps in (1, 3):
        joint = ancestral_joint(TableDenoiser(), ALL_MASKED, alphas(num_steps, "log-linear"))
        assert chi_square_p_value(samples, joint) < 1e-6


def test_every_step_of_the_plain_sampler_is_a_full_pass() -> None:
    denoiser = TableDenoiser()
    plain.plain_unmask(
        denoiser, torch.full((5, 3), MASK), num_steps=7, schedule=SCHEDULE, generator=seeds.generator(0)
    )
    assert denoiser.batches == [5] * 7


def test_targets_are_those_of_the_pass_that_unmasks_or_else_of_the_last() -> None:
    class Teacher(TableDenoiser):
        def hidden(self, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return super().hidden(tokens)

    seen: list[Tensor] = []
    corrupted_BL = torch.tensor([ALL_MASKED, (MASK, 2, MASK)] * 200)
    targets_BLV = plain.plain_targets(
        Teacher(),
        corrupted_BL,
        torch.full((400,), 0.9, dtype=torch.float64),
        delta=0.3,
        teacher_steps=3,
        schedule=SCHEDULE,
        generator=seeds.generator(0),
    )
    assert len(seen) == 3
    predictions = [TableDenoiser().hidden(tokens).log_softmax(-1) for tokens in seen]
    expected_BLV = predictions[2]
    for number in (1, 0):
        written_BL = (seen[number] == MASK) & (seen[number + 1] != MASK)
        assert written_BL.sum() > 100
        expected_BLV = torch.where(written_BL[..., None], predictions[number], expected_BLV)
    masked_BL = corrupted_BL == MASK
    torch.testing.assert_close(targets_BLV[masked_BL], expected_BLV[masked_BL])
    unmasked = (seen[1][masked_BL] != MASK).double().mean().item()
    assert unmasked == pytest.approx(0.3 / 0.9, abs=0.05)


@pytest.fixture
def student(tiny_denoiser: Denoiser) -> Denoiser:
    moved = copy.deepcopy(tiny_denoiser)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return moved


@pytest.mark.parametrize("teacher_steps", [1, 2])
def test_a_training_step_agrees_with_ours(
    tiny_denoiser: Denoiser, student: Denoiser, teacher_steps: int
) -> None:
    """With steps of size 1 the first pass unmasks everything, so nothing depends on what is drawn."""
    objective = DistillationObjective(
        teacher=tiny_denoiser, delta=1.0, teacher_steps=teacher_steps, teacher_rollouts=1,
        divergence="reverse_kl", schedule=SCHEDULE, seed=0,
    )  # fmt: skip
    batch = objective.prepare(TOKENS_BL, 0)
    ours, theirs = copy.deepcopy(student), copy.deepcopy(student)
    loss = objective.loss_sum(ours, batch) / objective.normalizer(batch)
    loss.backward()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.0)
    plain_loss = plain.plain_training_step(
        theirs, tiny_denoiser, optimizer, batch["corrupted"], batch["times"], delta=1.0,
        teacher_steps=teacher_steps, schedule=SCHEDULE, generator=seeds.generator(0),
    )  # fmt: skip
    assert loss.item() > 0.01
    torch.testing.assert_close(plain_loss, loss.detach(), rtol=1e-5, atol=1e-6)
    expected = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_training_step_moves_the_student(tiny_denoiser: Denoiser, student: Denoiser) -> None:
    corrupted_BL = torch.where(torch.arange(24) % 2 == 0, 29, TOKENS_BL)
    losses = [
        plain.plain_training_step(
            student, tiny_denoiser, torch.optim.SGD(student.parameters(), lr=1e-3), corrupted_BL,
            torch.full((6,), 0.5, dtype=torch.float64), delta=1.0, teacher_steps=2, schedule=SCHEDULE,
            generator=seeds.generator(0),
        ).item()
        for _ in range(4)
    ]  # fmt: skip
    assert losses[-1] < losses[0]


def test_the_checkout_has_the_plain_code() -> None:
    assert Path(plain.__file__).samefile(plain_code.PLAIN)
    assert plain_code.load_plain("sampling").plain_unmask.__doc__ == plain.plain_unmask.__doc__


def test_an_installed_package_without_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plain_code, "PLAIN", tmp_path / "plain.py")
    with pytest.raises(ValueError) as refusal:
        plain_code.load_plain("sampling")
    assert str(refusal.value) == (
        "bench sampling compares with tests/plain.py, which is only in a checkout; run it from a clone"
    )
