"""The autoregressive side of `bench latency`: where tokens are timed, and how the whole follows."""

import pytest
import torch

from fewstep.benchmark import networks
from fewstep.benchmark.autoregressive import (
    Gpt2AtCacheLength,
    TokensAtCacheLength,
    cache_lengths,
    integrated,
)

CPU = torch.device("cpu")


def test_tokens_are_timed_evenly_and_the_last_are_the_last_of_the_text() -> None:
    assert cache_lengths(1024, 4) == [1, 256, 511, 765, 1020]
    assert cache_lengths(16, 4) == [1, 4, 7, 9, 12]
    assert cache_lengths(6, 4) == [1, 2]
    with pytest.raises(ValueError) as refusal:
        cache_lengths(5, 4)
    assert str(refusal.value) == "length is 5 and timed_tokens 4; the length must be at least 2 more"


@pytest.mark.parametrize("timed_tokens", [1, 4])
@pytest.mark.parametrize("length", [16, 100])
def test_integration_is_exact_for_a_linear_cost(timed_tokens: int, length: int) -> None:
    def cost(held: int) -> float:
        return 0.5 + 0.01 * held

    starts = cache_lengths(length, timed_tokens)
    seconds = [sum(cost(start + i) for i in range(timed_tokens)) for start in starts]
    whole = integrated(starts, seconds, timed_tokens=timed_tokens, length=length)
    assert whole == pytest.approx(sum(map(cost, range(length))), rel=1e-12)


def test_integration_follows_a_bend() -> None:
    # Costs 1, 1, 4 at 0, 2 and 4 held: 1, 1, 1, then 2.5 between and 4, then on along the last line.
    assert integrated([0, 2, 4], [1.0, 1.0, 4.0], timed_tokens=1, length=6) == 1 + 1 + 1 + 2.5 + 4 + 5.5


def test_our_tokens_are_written_one_a_pass_at_that_cache_length(
    nano: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = networks.new_pair(nano, CPU)
    tokens = TokensAtCacheLength(model, batch=2, length=16, timed_tokens=3, seed=0)
    passes = []
    hidden = model.hidden

    def spied(tokens_BL, cache):
        passes.append((tuple(tokens_BL.shape), cache.length))
        rows = hidden(tokens_BL, cache)
        assert torch.isfinite(rows).all()
        return rows

    monkeypatch.setattr(model, "hidden", spied)
    for start in (1, 13):
        assert tokens.seconds(start) > 0
    assert passes == [((2, 1), held) for held in (1, 2, 3, 13, 14, 15)]


def test_gpt2_writes_one_untimed_token_and_then_as_many_at_that_cache_length(nano: str) -> None:
    model = networks.new_gpt2(nano, 16, CPU)
    tokens = Gpt2AtCacheLength(model, batch=2, length=16, timed_tokens=3)
    passes = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(
            (tuple(inputs["input_ids"].shape), inputs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    for start in (1, 13):
        assert tokens.seconds(start) > 0
    assert passes == [((2, 1), held) for held in (0, 1, 2, 3, 12, 13, 14, 15)]
