"""The teacher's rollout: against the algorithm by hand, its time grid, and what it costs."""

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.masking import corrupt
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.targets import teacher_targets
from fewstep.models.language_model import Denoiser
from tests.distillation.reference import targets_by_hand
from tests.sampling.reference import MASK, VOCAB_SIZE, TableDenoiser, recorded_pass


class PassNumber:
    """A teacher whose prediction in pass i is the number i; it records the batch of each pass."""

    vocab_size, mask_token_id = 4, 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        return recorded_pass(self.batches, torch.full((*tokens.shape, 1), float(len(self.batches))), rows)

    def head(self, hidden_rows: Tensor) -> Tensor:
        return hidden_rows.expand(-1, 4)


def corrupted(clean_BL: Tensor, times_B: Tensor, schedule: str, mask_token_id: int) -> Tensor:
    return corrupt(
        clean_BL,
        times_B,
        schedule=SCHEDULES[schedule],
        mask_token_id=mask_token_id,
        generator=seeds.generator(0),
    )


def share_of_each_pass(
    t: float, delta: float, teacher_steps: int, schedule: str = "log-linear"
) -> list[float]:
    """Return which share of 20,000 masked positions has each pass's prediction as its target."""
    targets = teacher_targets(
        PassNumber(),
        torch.full((20, 1000), 4),
        torch.full((20,), t, dtype=torch.float64),
        delta=delta,
        teacher_steps=teacher_steps,
        schedule=SCHEDULES[schedule],
        generators=seeds.sequence_generators(1, count=20),
    )
    return [(targets == i).double().mean().item() for i in range(teacher_steps)]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("teacher_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("delta", [0.03, 0.2])
def test_targets_are_those_of_the_algorithm(schedule: str, teacher_steps: int, delta: float) -> None:
    """Same generators, same targets, bit for bit, in the order of the masked positions."""
    teacher = TableDenoiser(seed=5)
    times_B = torch.linspace(0.01, 1.0, 40, dtype=torch.float64)
    clean_BL = torch.randint(0, VOCAB_SIZE, (40, 3), generator=seeds.generator(1))
    corrupted_BL = corrupted(clean_BL, times_B, schedule, MASK)
    settings = {"delta": delta, "teacher_steps": teacher_steps, "schedule": SCHEDULES[schedule]}
    targets = teacher_targets(
        teacher, corrupted_BL, times_B, **settings, generators=seeds.sequence_generators(2, count=40)
    )
    by_hand, _ = targets_by_hand(
        TableDenoiser(seed=5),
        corrupted_BL,
        times_B,
        **settings,
        generators=seeds.sequence_generators(2, count=40),
    )
    places = [tuple(place) for place in (corrupted_BL == MASK).nonzero().tolist()]
    assert sorted(by_hand) == places, "exactly one target for each masked position"
    assert torch.equal(targets, torch.stack([by_hand[place] for place in places]))


@torch.inference_mode()
def test_targets_of_a_transformer_are_those_of_the_algorithm(tiny_denoiser: Denoiser) -> None:
    times_B = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    clean_BL = torch.randint(0, 29, (4, 24), generator=seeds.generator(1))
    corrupted_BL = corrupted(clean_BL, times_B, "log-linear", tiny_denoiser.mask_token_id)
    settings = {"delta": 0.15, "teacher_steps": 3, "schedule": SCHEDULES["log-linear"]}
    targets = teacher_targets(
        tiny_denoiser, corrupted_BL, times_B, **settings, generators=seeds.sequence_generators(2, count=4)
    )
    by_hand, _ = targets_by_hand(
        tiny_denoiser, corrupted_BL, times_B, **settings, generators=seeds.sequence_generators(2, count=4)
    )
    expected = torch.stack([by_hand[place] for place in sorted(by_hand)])
    torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-4)


def test_passes_are_at_t_and_then_every_delta() -> None:
    """Of what is masked at t, delta / t unmasks in each step of the schedule 1 - t.

    The passes are at t, t - delta, ..., t - (k - 1) delta, so the last takes what is left.
    """
    assert share_of_each_pass(0.5, 0.1, 3) == pytest.approx([0.2, 0.2, 0.6], abs=0.012)
    assert share_of_each_pass(0.8, 0.1, 4) == pytest.approx([1 / 8, 1 / 8, 1 / 8, 5 / 8], abs=0.012)


def test_mistake_grid_that_ends_at_t_minus_k_delta() -> None:
    """Passes spread evenly from t to t - k * delta are k / (k - 1) * delta apart: too far.

    With k = 2 that mistake would unmask 2 * delta / t in the first pass instead of delta / t.
    """
    assert share_of_each_pass(0.5, 0.1, 2) == pytest.approx([0.2, 0.8], abs=0.012)


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_mistake_time_grid_interpolated_with_one_minus_t(t: float) -> None:
    """The weight of an interpolation is i / k; 1 - t in its place makes steps depend on t twice."""
    assert share_of_each_pass(t, 0.05, 3) == pytest.approx([0.05 / t, 0.05 / t, 1 - 0.1 / t], abs=0.015)


def test_mistake_negative_times_near_zero() -> None:
    """Within a step of 0 everything unmasks in that step; alpha of a negative time would be wrong.

    The cosine's alpha(-0.09) is alpha(0.09) < 1, and so would leave positions for a second pass.
    """
    for schedule in SCHEDULES:
        assert share_of_each_pass(0.01, 0.1, 3, schedule) == [1, 0, 0]
    first, second, third = share_of_each_pass(0.15, 0.1, 3)
    assert first == pytest.approx(2 / 3, abs=0.012)
    assert first + second == 1
    assert third == 0


def test_cosine_steps_follow_alpha() -> None:
    alpha = {t: torch.sin(torch.tensor(torch.pi / 2 * (1 - t))).item() for t in (0.6, 0.4)}
    rho = (alpha[0.4] - alpha[0.6]) / (1 - alpha[0.6])
    assert share_of_each_pass(0.6, 0.2, 2, "cosine") == pytest.approx([rho, 1 - rho], abs=0.015)


@pytest.mark.parametrize("teacher_steps", [1, 2, 4])
def test_passes_cost_at_most_teacher_steps(teacher_steps: int) -> None:
    teacher = PassNumber()
    teacher_targets(
        teacher,
        torch.full((2, 50), 4),
        torch.ones(2, dtype=torch.float64),
        delta=0.1,
        teacher_steps=teacher_steps,
        schedule=SCHEDULES["log-linear"],
        generators=seeds.sequence_generators(0, count=2),
    )
    assert teacher.batches == [2] * teacher_steps


def test_finished_rows_cost_no_pass() -> None:
    """A clean row is in no pass, one near t = 0 in the first only, one at t = 1 in all three."""
    teacher = PassNumber()
    corrupted_BL = torch.full((3, 50), 4)
    corrupted_BL[0] = 1
    targets = teacher_targets(
        teacher,
        corrupted_BL,
        torch.tensor([0.5, 0.05, 1.0], dtype=torch.float64),
        delta=0.1,
        teacher_steps=3,
        schedule=SCHEDULES["log-linear"],
        generators=seeds.sequence_generators(0, count=3),
    )
    assert teacher.batches == [2, 1, 1]
    assert targets.shape == (100, 1)
    assert (targets[:50] == 0).all()
    assert set(targets[50:].flatten().tolist()) == {0, 1, 2}


def test_clean_batch_has_no_targets() -> None:
    targets = teacher_targets(
        PassNumber(),
        torch.zeros(2, 5, dtype=torch.long),
        torch.full((2,), 0.5, dtype=torch.float64),
        delta=0.1,
        teacher_steps=2,
        schedule=SCHEDULES["log-linear"],
        generators=seeds.sequence_generators(0, count=2),
    )
    assert targets.shape == (0, 1)


def test_input_is_not_written_to() -> None:
    corrupted_BL = torch.full((2, 3), MASK)
    before = corrupted_BL.clone()
    teacher_targets(
        TableDenoiser(),
        corrupted_BL,
        torch.ones(2, dtype=torch.float64),
        delta=0.5,
        teacher_steps=2,
        schedule=SCHEDULES["log-linear"],
        generators=seeds.sequence_generators(0, count=2),
    )
    assert torch.equal(corrupted_BL, before)
