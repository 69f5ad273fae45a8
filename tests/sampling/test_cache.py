"""Generation with kept keys and values: exact where it says so, and as cheap as it says."""

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.models.language_model import Denoiser
from fewstep.sampling.loop import Progress, unmask_in_steps
from fewstep.sampling.samplers import sampler_named
from tests.sampling.reference import MASK, TableDenoiser

SAMPLERS = ["ancestral", "first-hitting", "confidence"]
LENGTH = 20


def run(
    denoiser: Denoiser, tokens_BL: Tensor, num_steps: int, sampler: str = "ancestral", cache_refresh: int = 1
) -> list[Progress]:
    return list(
        unmask_in_steps(
            denoiser,
            tokens_BL,
            num_steps=num_steps,
            sampler=sampler_named(sampler),
            schedule=SCHEDULES["log-linear"],
            generators=seeds.sequence_generators(0, count=len(tokens_BL)),
            cache_refresh=cache_refresh,
        )
    )


def masks(batch: int, denoiser: Denoiser) -> Tensor:
    return torch.full((batch, LENGTH), denoiser.mask_token_id)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_refresh_every_step_is_the_uncached_sampler(tiny_denoiser: Denoiser, sampler: str) -> None:
    """It keeps nothing, not even a cache. With a longer interval, the first pass still is a full one."""
    exact = run(tiny_denoiser, masks(3, tiny_denoiser), 6, sampler)
    cached = run(tiny_denoiser, masks(3, tiny_denoiser), 6, sampler, cache_refresh=6)
    assert torch.equal(exact[0].tokens_BL, cached[0].tokens_BL)
    tiny_denoiser.new_cache = None  # pyright: ignore[reportAttributeAccessIssue]
    without = run(tiny_denoiser, masks(3, tiny_denoiser), 6, sampler)
    assert torch.equal(without[-1].tokens_BL, exact[-1].tokens_BL)


def test_one_refresh_interval_of_two_steps_computes_what_changed(tiny_denoiser: Denoiser) -> None:
    progress = run(tiny_denoiser, masks(1, tiny_denoiser), 4, "first-hitting", cache_refresh=2)
    # 5 positions a step: a full pass, 5 asked and 5 changed, again both
    assert [p.positions_computed for p in progress] == [20, 30, 50, 60]
    assert progress[-1].num_forwards == 4


def test_never_refreshing_makes_one_full_pass(tiny_denoiser: Denoiser) -> None:
    progress = run(tiny_denoiser, masks(2, tiny_denoiser), 10, "first-hitting", cache_refresh=0)
    assert progress[-1].positions_computed == 2 * (20 + 9 * (2 + 2))


def test_uncached_passes_count_the_sequences_that_take_part(tiny_denoiser: Denoiser) -> None:
    tokens_BL = masks(2, tiny_denoiser)
    tokens_BL[1, 1:] = 3
    progress = run(tiny_denoiser, tokens_BL, 4, "first-hitting")
    assert progress[-1].positions_computed == 4 * 20 + 1 * 20


@pytest.mark.parametrize("cache_refresh", [0, 2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_text_does_not_depend_on_its_batch(
    tiny_denoiser: Denoiser, sampler: str, cache_refresh: int
) -> None:
    """Row 1 has little to write, so that it sits out passes in which others refresh."""
    tokens_BL = masks(3, tiny_denoiser)
    tokens_BL[1, 3:] = 7
    together = run(tiny_denoiser, tokens_BL, 9, sampler, cache_refresh)[-1].tokens_BL
    for row in range(3):
        alone = unmask_in_steps(
            tiny_denoiser,
            tokens_BL[row : row + 1],
            num_steps=9,
            sampler=sampler_named(sampler),
            schedule=SCHEDULES["log-linear"],
            generators=[seeds.sequence_generators(0, count=3)[row]],
            cache_refresh=cache_refresh,
        )
        *_, last = alone
        assert torch.equal(last.tokens_BL[0], together[row])


def test_a_cache_changes_later_passes_only_a_little(tiny_denoiser: Denoiser) -> None:
    """It is approximate: it must differ from the exact text somewhere, or this test shows nothing."""
    exact = run(tiny_denoiser, masks(32, tiny_denoiser), 5)[-1].tokens_BL
    cached = run(tiny_denoiser, masks(32, tiny_denoiser), 5, cache_refresh=0)[-1].tokens_BL
    assert 0.3 < (exact == cached).double().mean().item() < 1


def test_settings_that_cannot_be_met_are_refused(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="cache_refresh is -1; it is the steps from one full pass"):
        run(tiny_denoiser, masks(1, tiny_denoiser), 4, cache_refresh=-1)
    with pytest.raises(ValueError, match="a TableDenoiser cannot compute some positions without the others"):
        run(TableDenoiser(), torch.full((1, 3), MASK), 4, cache_refresh=2)  # pyright: ignore
