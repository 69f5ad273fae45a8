"""Corruption, unmask probability and low-discrepancy times: exact values and frequencies."""

import math

import pytest
import torch

from fewstep.diffusion.masking import SMALLEST_TIME, corrupt, low_discrepancy_times, unmask_probability
from fewstep.diffusion.schedule import SCHEDULES, Cosine, LogLinear, Schedule

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
GRID = torch.linspace(0, 1, 51, dtype=torch.float64)


def rho(t: float, s: float, schedule: Schedule) -> float:
    pair = torch.tensor([t, s], dtype=torch.float64)
    return unmask_probability(pair[:1], pair[1:], schedule=schedule).item()


@every_schedule
def test_all_is_unmasked_at_time_zero(schedule: Schedule) -> None:
    probability = unmask_probability(GRID[1:], torch.zeros_like(GRID[1:]), schedule=schedule)
    assert (probability == 1).all()


@every_schedule
def test_no_nan_at_time_zero_where_nothing_is_masked(schedule: Schedule) -> None:
    assert rho(0.0, 0.0, schedule) == 0.0


def test_unmask_probability_by_hand() -> None:
    assert rho(0.8, 0.2, LogLinear()) == pytest.approx(0.75, rel=1e-14)
    assert rho(1.0, 0.25, LogLinear()) == pytest.approx(0.75, rel=1e-14)
    by_hand = (math.cos(math.pi / 6) - math.cos(math.pi / 3)) / (1 - math.cos(math.pi / 3))
    assert rho(2 / 3, 1 / 3, Cosine()) == pytest.approx(by_hand, rel=1e-13)


@every_schedule
def test_two_steps_compose_to_one(schedule: Schedule) -> None:
    t, s, r = (part.flatten() for part in torch.meshgrid(GRID, GRID, GRID, indexing="ij"))
    ordered = (r <= s) & (s <= t) & (s > 0)
    t, s, r = t[ordered], s[ordered], r[ordered]
    stays = 1 - unmask_probability(t, r, schedule=schedule)
    first = 1 - unmask_probability(t, s, schedule=schedule)
    second = 1 - unmask_probability(s, r, schedule=schedule)
    torch.testing.assert_close(stays, first * second, rtol=0, atol=1e-12)


@every_schedule
def test_corruption_masks_with_probability_one_minus_alpha(schedule: Schedule) -> None:
    times = torch.tensor([0.02, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    tokens = torch.randint(0, 7, (5, 40_000), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    corrupted = corrupt(tokens, times, schedule=schedule, mask_token_id=7, generator=generator)
    masked = corrupted == 7
    assert (corrupted[~masked] == tokens[~masked]).all()
    for row, t in zip(masked, times, strict=True):
        p = 1 - schedule.alpha(t).item()
        five_sigma = 5 * math.sqrt(p * (1 - p) / len(row))
        assert abs(row.double().mean().item() - p) <= five_sigma


def test_corruption_at_the_ends() -> None:
    tokens = torch.arange(6).repeat(2, 1)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    corrupted = corrupt(
        tokens, times, schedule=Cosine(), mask_token_id=9, generator=torch.Generator().manual_seed(0)
    )
    assert corrupted.tolist() == [[0, 1, 2, 3, 4, 5], [9] * 6]


def test_corruption_masks_neighbours_independently() -> None:
    tokens = torch.zeros(1, 100_000, dtype=torch.long)
    times = torch.tensor([0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    masked = corrupt(tokens, times, schedule=LogLinear(), mask_token_id=1, generator=generator)[0] == 1
    both = (masked[:-1] & masked[1:]).double().mean().item()
    assert abs(both - 0.16) < 5 * math.sqrt(0.16 * 0.84 / 100_000) * 1.5


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_each_stratum_holds_exactly_one_time(batch: int) -> None:
    times = low_discrepancy_times(batch, torch.Generator().manual_seed(batch))
    assert times.dtype == torch.float64
    strata = ((times - SMALLEST_TIME) / (1 - SMALLEST_TIME) * batch).floor().long()
    assert sorted(strata.tolist()) == list(range(batch))
    assert (times >= SMALLEST_TIME).all() and (times <= 1).all()


def test_each_time_alone_is_uniform() -> None:
    draws = torch.stack(
        [low_discrepancy_times(5, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    )
    for column in draws.T:  # the Kolmogorov-Smirnov distance from uniform, at a p-value near 1e-6
        empirical = torch.arange(1, len(column) + 1, dtype=torch.float64) / len(column)
        assert (column.sort().values - empirical).abs().max().item() < 2.7 / math.sqrt(len(column))
