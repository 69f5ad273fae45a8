"""The autoregressive side of `bench latency`: seconds a token at several cache lengths, and their sum.

A token's pass costs more the more keys it attends to, and nothing else about it changes along a text. So
a few tokens are timed at several cache lengths, and the cost in between is interpolated linearly, which
is what attention's cost is. Filling the cache counts for nothing: its keys are random.

Hugging Face's `GPT2LMHeadModel.generate` is timed at the same cache lengths by the times at which it
hands out its tokens, so its set-up and its first pass count for nothing either.
"""

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

from fewstep import seeds
from fewstep.benchmark.timing import Stopwatch
from fewstep.models.language_model import AutoregressiveLM
from fewstep.sampling.autoregressive import draw_where_asked
from fewstep.sampling.sharpening import Sharpening

NUM_CACHE_LENGTHS = 5


def cache_lengths(length: int, timed_tokens: int) -> list[int]:
    """Return the cache lengths at which tokens are timed: evenly from 1 to the last that has room.

    Raises:
        ValueError: if `length` has no room for two of them.
    """
    last = length - timed_tokens
    if last < 2:
        raise ValueError(
            f"length is {length} and timed_tokens {timed_tokens}; the length must be at least 2 more"
        )
    return sorted({1 + round((last - 1) * i / (NUM_CACHE_LENGTHS - 1)) for i in range(NUM_CACHE_LENGTHS)})


def integrated(starts: Sequence[int], seconds: Sequence[float], *, timed_tokens: int, length: int) -> float:
    """Return the seconds of `length` tokens written from an empty cache.

    Args:
        starts: The cache lengths before the first of the timed tokens.
        seconds: Seconds of the `timed_tokens` together at each of them.

    A token's cost is taken at the middle of the timed ones and is linear between neighbours, and beyond
    the first and last; so the sum is exact for a cost that is linear.
    """
    assert len(starts) == len(seconds) >= 2
    middles = [start + (timed_tokens - 1) / 2 for start in starts]
    costs = [value / timed_tokens for value in seconds]
    total, segment = 0.0, 0
    for held in range(length):
        while segment < len(middles) - 2 and held > middles[segment + 1]:
            segment += 1
        slope = (costs[segment + 1] - costs[segment]) / (middles[segment + 1] - middles[segment])
        total += costs[segment] + slope * (held - middles[segment])
    return total


class TokensAtCacheLength:
    """Writes and times a few tokens with our autoregressive model at any cache length.

    One cache serves all lengths; it is filled with random keys and values once.
    """

    @torch.inference_mode()
    def __init__(
        self, model: AutoregressiveLM, *, batch: int, length: int, timed_tokens: int, seed: int
    ) -> None:
        self.model, self.timed_tokens, self.batch = model, timed_tokens, batch
        self.cache = model.new_cache(batch, length)
        self.cache.storage.uniform_(-1, 1)
        self.generators = seeds.sequence_generators(seed, count=batch)

    @torch.inference_mode()
    def seconds(self, cache_length: int) -> float:
        """Return the seconds of all timed tokens after `cache_length` held positions."""
        self.cache.length = cache_length
        tokens_B1 = torch.zeros(self.batch, 1, dtype=torch.long, device=self.model.device)
        with Stopwatch(self.model.device) as watch:
            for _ in range(self.timed_tokens):
                rows_B1D = self.model.hidden(tokens_B1, self.cache)
                tokens_B1 = self.draw(rows_B1D[:, -1])[:, None]
        return watch.seconds

    def draw(self, rows_BD: Tensor) -> Tensor:
        return draw_where_asked(self.model, rows_BD, 0, [0] * self.batch, self.generators, Sharpening())


class Gpt2AtCacheLength:
    """The same for `GPT2LMHeadModel.generate`, whose cache grows from random keys and values."""

    @torch.inference_mode()
    def __init__(self, model: GPT2LMHeadModel, *, batch: int, length: int, timed_tokens: int) -> None:
        self.model, self.timed_tokens, self.batch = model, timed_tokens, batch
        config = model.config
        shape = (batch, config.n_head, length, config.n_embd // config.n_head)
        self.keys, self.values = (
            torch.empty(shape, dtype=model.dtype, device=model.device).uniform_(-1, 1) for _ in range(2)
        )

    @torch.inference_mode()
    def seconds(self, cache_length: int) -> float:
        """Return the seconds of all timed tokens after `cache_length` held positions, at least 1.

        One token more is written before them and is not timed, so that set-up does not count.
        """
        held = cache_length - 1
        cache = DynamicCache(config=self.model.config)
        if held:
            for layer in range(self.model.config.n_layer):
                cache.update(self.keys[:, :, :held].clone(), self.values[:, :, :held].clone(), layer)
        tokens_BL = torch.zeros(self.batch, cache_length, dtype=torch.long, device=self.model.device)
        clock = TokenClock()
        cast(Any, self.model).generate(
            tokens_BL,
            attention_mask=torch.ones_like(tokens_BL),
            past_key_values=cache,
            max_new_tokens=self.timed_tokens + 1,
            do_sample=True,
            top_k=0,
            use_cache=True,
            pad_token_id=0,
            streamer=clock,
        )
        _, first, *_, last = clock.times  # the prompt comes before the first token
        assert len(clock.times) == self.timed_tokens + 2
        return last - first


class TokenClock(BaseStreamer):
    """Notes when `generate` hands out the prompt and each token; they are then on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass
