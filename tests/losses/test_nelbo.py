"""The bound of a masked diffusion model against few-line versions and full enumeration."""

import dataclasses
import math

import pytest
import torch

from fewstep.diffusion.schedule import SCHEDULES, Cosine, LogLinear
from fewstep.losses.nelbo import NelboObjective, bound_weights, nelbo_sum
from fewstep.models.language_model import Denoiser
from tests.reference import exact_bound

CLEAN = torch.randint(0, 29, (3, 6), generator=torch.Generator().manual_seed(0))


def test_weights_by_hand() -> None:
    times = torch.tensor([0.25, 0.8], dtype=torch.float64)
    assert bound_weights(times, schedule=LogLinear()).tolist() == pytest.approx([4.0, 1.25], rel=1e-13)
    by_hand = [math.pi / 2 * math.sin(math.pi / 2 * t) / (1 - math.cos(math.pi / 2 * t)) for t in (0.25, 0.8)]
    assert bound_weights(times, schedule=Cosine()).tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_sum_is_over_masked_positions_with_the_weight_of_their_time(
    name: str, tiny_denoiser: Denoiser
) -> None:
    times = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    corrupted = CLEAN.clone()
    corrupted[0, 2] = corrupted[1, :3] = corrupted[2, :] = 29
    loss = nelbo_sum(tiny_denoiser, CLEAN, corrupted, times, schedule=SCHEDULES[name])
    log_p = tiny_denoiser(corrupted).logits.double().log_softmax(-1)
    h, expected = 1e-6, 0.0
    for b in range(3):
        alpha = SCHEDULES[name].alpha(times[b] + torch.tensor([-h, 0.0, h]).double())
        weight = ((alpha[0] - alpha[2]) / (2 * h) / (1 - alpha[1])).item()
        for i in range(6):
            if corrupted[b, i] == 29:
                expected -= weight * log_p[b, i, CLEAN[b, i]].item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_masked_gives_zero_and_a_gradient_of_zero(tiny_denoiser: Denoiser) -> None:
    times = torch.full((3,), 0.3, dtype=torch.float64)
    loss = nelbo_sum(tiny_denoiser, CLEAN, CLEAN, times, schedule=LogLinear())
    loss.backward()
    assert loss.item() == 0.0
    assert not any(p.grad.any() for p in tiny_denoiser.parameters() if p.grad is not None)


@torch.no_grad()
def test_expectation_is_the_exact_bound(tiny_denoiser: Denoiser) -> None:
    """The mean over many corruptions is the integral over time and masks, written out."""
    objective = NelboObjective(mask_token_id=29, schedule=LogLinear(), seed=0)
    copies = CLEAN[:1, :3].repeat(64, 1)
    sums = []
    for training_step in range(150):
        batch = objective.prepare(copies, training_step)
        sums.append(objective.loss_sum(tiny_denoiser, batch).item() / 64)
    exact = exact_bound(
        lambda tokens: tiny_denoiser(tokens[None]).logits[0].log_softmax(-1), CLEAN[0, :3], 29
    )
    estimate = torch.tensor(sums, dtype=torch.float64)
    error = (estimate.std() / math.sqrt(len(sums))).item()
    assert error < 0.02 * exact
    assert abs(estimate.mean().item() - exact) < 5 * error + 1e-4 * exact


def test_prepared_batch_is_a_function_of_seed_and_training_step() -> None:
    objective = NelboObjective(mask_token_id=29, schedule=LogLinear(), seed=4)
    first, again = objective.prepare(CLEAN, 7), objective.prepare(CLEAN, 7)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["times"], objective.prepare(CLEAN, 8)["times"])
    other_seed = dataclasses.replace(objective, seed=5)
    assert not torch.equal(first["times"], other_seed.prepare(CLEAN, 7)["times"])
    assert objective.normalizer(first) == 18
    masked = first["corrupted"] == 29
    assert torch.equal(first["corrupted"][~masked], CLEAN[~masked])
