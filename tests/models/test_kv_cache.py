"""Passes that use cached keys and values equal the full causal pass."""

import pytest
import torch

from fewstep.models.language_model import AutoregressiveLM

INPUTS = torch.randint(0, 30, (2, 15), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pieces", [[15], [1] * 15, [4, 1, 6, 3, 1], [1, 14], [14, 1]])
@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_pieces_equal_the_full_pass(
    tiny_autoregressive: AutoregressiveLM, pieces: list[int], fold: bool
) -> None:
    full = tiny_autoregressive.hidden(INPUTS)
    if fold:
        full = tiny_autoregressive.folded().hidden(INPUTS)
    cache = tiny_autoregressive.new_cache(batch=2, capacity=15)
    parts = [tiny_autoregressive.hidden(piece, cache) for piece in INPUTS.split(pieces, dim=1)]
    assert cache.length == 15
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_spare_capacity_is_not_seen(tiny_autoregressive: AutoregressiveLM) -> None:
    cache = tiny_autoregressive.new_cache(batch=2, capacity=40)
    cache.storage.fill_(1e3)
    tiny_autoregressive.hidden(INPUTS[:, :9], cache)
    last = tiny_autoregressive.hidden(INPUTS[:, 9:], cache)
    torch.testing.assert_close(last, tiny_autoregressive.hidden(INPUTS)[:, 9:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_full_cache_is_refused(tiny_autoregressive: AutoregressiveLM) -> None:
    cache = tiny_autoregressive.new_cache(batch=2, capacity=14)
    with pytest.raises(AssertionError, match="15 positions in a cache of 14"):
        tiny_autoregressive.hidden(INPUTS, cache)
