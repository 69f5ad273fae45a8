"""Texts longer than the context: windows, what each block sees, and what it costs."""

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.models.language_model import Denoiser
from fewstep.sampling.blocks import unmask_in_blocks, windows
from fewstep.sampling.loop import Progress, unmask_in_steps
from fewstep.sampling.samplers import sampler_named

SETTINGS = {"sampler": sampler_named("first-hitting"), "schedule": SCHEDULES["log-linear"]}


def write(denoiser: Denoiser, tokens_BL: Tensor, **settings) -> list[Progress]:
    generators = seeds.sequence_generators(0, count=len(tokens_BL))
    return list(unmask_in_blocks(denoiser, tokens_BL, generators=generators, **SETTINGS, **settings))


@pytest.mark.parametrize(
    ("length", "starts"),
    [(24, [0]), (25, [0, 1]), (32, [0, 8]), (44, [0, 8, 16, 20])],
)
def test_windows_reach_the_end(length: int, starts: list[int]) -> None:
    assert windows(length, 24, 8) == starts


def test_each_block_is_written_in_view_of_the_context_before_it(tiny_denoiser: Denoiser) -> None:
    """The same text as writing the first context, then each window with the finished text as its prompt."""
    tokens_BL = torch.full((2, 44), tiny_denoiser.mask_token_id)
    progress = write(tiny_denoiser, tokens_BL, context_length=24, block_length=8, num_steps=6)
    generators = seeds.sequence_generators(0, count=2)
    expected = tokens_BL.clone()
    for start, num_steps in ((0, 6), (8, 2), (16, 2), (20, 1)):
        window = slice(start, start + 24)
        *_, last = unmask_in_steps(
            tiny_denoiser, expected[:, window], num_steps=num_steps, generators=generators, **SETTINGS
        )
        expected[:, window] = last.tokens_BL
    assert torch.equal(progress[-1].tokens_BL, expected)
    assert [p.step for p in progress] == list(range(1, 12))
    assert {p.num_steps for p in progress} == {11}
    assert progress[-1].num_forwards == 11
    assert progress[-1].positions_computed == 2 * 11 * 24


def test_a_finished_prefix_is_not_computed_again(tiny_denoiser: Denoiser) -> None:
    tokens_BL = torch.full((1, 32), tiny_denoiser.mask_token_id)
    progress = write(
        tiny_denoiser, tokens_BL, context_length=24, block_length=8, num_steps=3, cache_refresh=0
    )
    just_written = (progress[1].tokens_BL != progress[2].tokens_BL)[:, 8:].sum().item()
    # 24 positions; 8 and 8; 8 and 8; then the block and what the last step wrote and the window still holds
    assert [p.positions_computed for p in progress] == [24, 40, 56, 56 + 8 + just_written]
    assert (progress[-1].tokens_BL < tiny_denoiser.mask_token_id).all()


def test_a_refresh_begins_each_block_with_a_full_pass(tiny_denoiser: Denoiser) -> None:
    """With one step a block, every pass is full, and so the text is exact."""
    tokens_BL = torch.full((2, 40), tiny_denoiser.mask_token_id)
    settings = {"context_length": 24, "block_length": 4, "num_steps": 1}
    exact = write(tiny_denoiser, tokens_BL, **settings)[-1]
    cached = write(tiny_denoiser, tokens_BL, **settings, cache_refresh=4)[-1]
    assert torch.equal(exact.tokens_BL, cached.tokens_BL)
    assert exact.positions_computed == cached.positions_computed
