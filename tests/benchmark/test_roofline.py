"""Bytes, operations and passes against numbers computed by hand."""

import pytest

from fewstep.benchmark.roofline import (
    Network,
    Pass,
    autoregressive_passes,
    bytes_read,
    diffusion_passes,
    full_passes,
    operations,
    roofline_seconds,
)

SMALLEST = Network(width=2, num_layers=3, vocab_size=10, mlp_ratio=4, bytes_per_number=4)
"""A block has 12 * 2 * 2 = 48 weights, the head 20."""


def test_weights_of_the_published_small_model() -> None:
    small = Network(width=768, num_layers=12, vocab_size=50257, mlp_ratio=4, bytes_per_number=4)
    assert small.block_weights == 7_077_888
    assert small.head_weights == 38_597_376


def test_a_token_of_an_autoregressive_model() -> None:
    token = Pass(computed=1, asked=1, keys=5, cached=True)
    # 3 blocks of 48 weights and a head of 20; attention to 5 keys: 2 * 2 * 5 multiplications a block.
    assert operations(SMALLEST, token, batch=1) == 2 * (3 * 48 + 20 + 3 * 20)
    assert operations(SMALLEST, token, batch=4) == 4 * operations(SMALLEST, token, batch=1)
    # 164 weights, and of each of 3 blocks 5 keys and 5 values of width 2, for each text.
    assert bytes_read(SMALLEST, token, batch=1) == 4 * (164 + 60)
    assert bytes_read(SMALLEST, token, batch=4) == 4 * (164 + 4 * 60)


def test_a_pass_of_a_denoiser_computes_its_last_block_where_it_is_asked() -> None:
    full = Pass(computed=8, asked=3, keys=8, cached=False)
    two_blocks = 2 * 48 * 8
    last_block = 8 * 8 + 40 * 3  # keys and values of all 8 rows; queries, output and MLP of 3
    attention = 2 * (2 * 2 * 8 * 8) + 2 * 2 * 8 * 3
    assert operations(SMALLEST, full, batch=1) == 2 * (two_blocks + last_block + attention + 20 * 3)
    assert bytes_read(SMALLEST, full, batch=7) == 4 * 164


def test_a_pass_takes_the_longer_of_reading_and_computing() -> None:
    token = Pass(computed=1, asked=1, keys=5, cached=True, count=3)  # 896 bytes, 448 operations
    assert roofline_seconds(SMALLEST, [token], 1, {"bandwidth": 100.0, "throughput": 1e9}) == 3 * 8.96
    assert roofline_seconds(SMALLEST, [token], 1, {"bandwidth": 1e9, "throughput": 100.0}) == 3 * 4.48
    both = [token, Pass(computed=1, asked=1, keys=5, cached=True)]
    assert roofline_seconds(SMALLEST, both, 1, {"bandwidth": 100.0, "throughput": 1e9}) == 4 * 8.96


@pytest.mark.parametrize(
    ("num_steps", "cache_refresh", "full"),
    [(8, 1, 8), (8, 0, 1), (16, 8, 2), (17, 8, 3), (4, 8, 1), (1, 0, 1), (9, 4, 3)],
)
def test_full_passes_are_the_first_and_every_so_many(num_steps: int, cache_refresh: int, full: int) -> None:
    assert full_passes(num_steps, cache_refresh) == full


def test_passes_of_a_generation() -> None:
    assert diffusion_passes(64, 16, 8) == [
        Pass(computed=64, asked=4, keys=64, cached=False, count=2),
        Pass(computed=8, asked=4, keys=64, cached=True, count=14),
    ]
    assert diffusion_passes(10, 4, 1)[0] == Pass(computed=10, asked=3, keys=10, cached=False, count=4)
    assert autoregressive_passes(3) == [
        Pass(computed=1, asked=1, keys=keys, cached=True) for keys in (1, 2, 3)
    ]
