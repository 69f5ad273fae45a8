"""Samplers draw from exactly the joint distribution that enumeration over all paths gives."""

import pytest
import torch

from fewstep import seeds
from fewstep.diffusion.masking import unmask_probability
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.sampling.loop import unmask_in_steps
from fewstep.sampling.samplers import sampler_named
from tests.sampling.reference import (
    MASK,
    State,
    TableDenoiser,
    ancestral_joint,
    chi_square_p_value,
    confidence_joint,
    first_hitting_joint,
    tweedie_unmasking,
)

NUM_SAMPLES = 10_000
ALL_MASKED = (MASK, MASK, MASK)


def sampled(
    sampler: str, num_steps: int, *, start: State = ALL_MASKED, schedule: str = "log-linear", seed: int = 0
) -> torch.Tensor:
    """Return `NUM_SAMPLES` texts, (NUM_SAMPLES, 3)."""
    *_, last = unmask_in_steps(
        TableDenoiser(),
        torch.tensor([start] * NUM_SAMPLES),
        num_steps=num_steps,
        sampler=sampler_named(sampler),
        schedule=SCHEDULES[schedule],
        generators=seeds.sequence_generators(seed, count=NUM_SAMPLES),
    )
    return last.tokens_BL


def alphas(num_steps: int, schedule: str) -> list[float]:
    """Return alpha at the times 1, 1 - 1 / N, ..., 0."""
    times = torch.tensor([1 - step / num_steps for step in range(num_steps + 1)], dtype=torch.float64)
    return SCHEDULES[schedule].alpha(times).tolist()


@pytest.mark.parametrize(
    ("num_steps", "schedule", "start"),
    [
        (1, "log-linear", ALL_MASKED),
        (2, "log-linear", ALL_MASKED),
        (4, "log-linear", ALL_MASKED),
        (3, "cosine", ALL_MASKED),
        (2, "linear", ALL_MASKED),
        (3, "log-linear", (MASK, 1, MASK)),
    ],
)
def test_ancestral_is_exact(num_steps: int, schedule: str, start: State) -> None:
    joint = ancestral_joint(TableDenoiser(), start, alphas(num_steps, schedule))
    assert sum(joint.values()) == pytest.approx(1)
    samples = sampled("ancestral", num_steps, schedule=schedule, start=start)
    assert chi_square_p_value(samples, joint) > 1e-3


def test_analytic_is_exact() -> None:
    joint = ancestral_joint(TableDenoiser(), ALL_MASKED, alphas(3, "log-linear"))
    assert chi_square_p_value(sampled("analytic", 3, seed=1), joint) > 1e-3


def test_the_chi_square_tells_two_steps_from_one_and_from_three() -> None:
    """The test above can fail: neighbouring numbers of steps give other distributions."""
    samples = sampled("ancestral", 2)
    for num_steps in (1, 3):
        joint = ancestral_joint(TableDenoiser(), ALL_MASKED, alphas(num_steps, "log-linear"))
        assert chi_square_p_value(samples, joint) < 1e-6


@pytest.mark.parametrize(("num_steps", "counts"), [(2, [1, 2]), (3, [1, 1, 1]), (7, [1, 1, 1])])
def test_first_hitting_is_exact(num_steps: int, counts: list[int]) -> None:
    joint = first_hitting_joint(TableDenoiser(), ALL_MASKED, counts)
    assert chi_square_p_value(sampled("first-hitting", num_steps), joint) > 1e-3


def test_first_hitting_with_a_step_a_token_is_ancestral_with_endless_steps() -> None:
    exact = first_hitting_joint(TableDenoiser(), ALL_MASKED, [1, 1, 1])
    distances = []
    for num_steps in (40, 80):
        joint = ancestral_joint(TableDenoiser(), ALL_MASKED, alphas(num_steps, "log-linear"))
        distances.append(sum(abs(exact[state] - joint[state]) for state in exact))
    assert distances[1] < 0.01
    assert distances[1] / distances[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("num_steps", "counts"), [(1, [3]), (2, [1, 2]), (3, [1, 1, 1])])
def test_confidence_keeps_the_surest_draws(num_steps: int, counts: list[int]) -> None:
    joint = confidence_joint(TableDenoiser(), ALL_MASKED, counts)
    assert chi_square_p_value(sampled("confidence", num_steps), joint) > 1e-3


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_analytic_is_tweedies_formula(name: str) -> None:
    """Unmasking with probability rho(t, s) and drawing from p is what the score prescribes."""
    p_V = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    schedule = SCHEDULES[name]
    for t in (0.05, 0.3, 0.7, 0.95, 0.999):
        for fraction in (0.02, 0.4, 0.9, 0.999):
            times = torch.tensor([t, t * fraction], dtype=torch.float64)
            alpha_t, alpha_s = schedule.alpha(times).tolist()
            rho = unmask_probability(*times, schedule=schedule)
            ours = torch.cat([rho * p_V, (1 - rho)[None]])
            torch.testing.assert_close(tweedie_unmasking(p_V, alpha_t, alpha_s), ours, rtol=1e-7, atol=1e-9)
