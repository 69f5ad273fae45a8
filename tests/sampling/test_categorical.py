"""The one draw: right frequencies, exact in the tail, refusals."""

import math

import pytest
import torch

from fewstep import seeds
from fewstep.sampling.categorical import draw
from tests.sampling.reference import chi_square_p_value

GENERATOR_OF_A_SEQUENCE = 0


def draws(logits_V: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` tokens that one sequence draws from the same logits."""
    generator = seeds.generator(seed, GENERATOR_OF_A_SEQUENCE)
    return draw(logits_V.expand(count, -1), [generator] * count)


def test_frequencies_are_the_probabilities() -> None:
    logits_V = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    joint = {(v,): p for v, p in enumerate(logits_V.softmax(0).tolist())}
    assert chi_square_p_value(draws(logits_V, 50_000)[:, None], joint) > 1e-3


def test_the_scale_of_the_logits_does_not_matter() -> None:
    """Logits far from 0 neither overflow nor underflow."""
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for shift in (-5000.0, 5000.0):
        assert torch.equal(draws(logits_V + shift, 200), draws(logits_V, 200))


def test_mistake_gumbel_argmax_in_float32() -> None:
    """A tail of total probability 1e-3, spread over 32,767 tokens, is drawn at the right rate.

    float32 noise comes from a grid of 2^-24, so Gumbel noise ends at 16.6 and a token of probability
    p is drawn at the rate p * exp(-2^-24 / p) of itself: one in seven of these.
    """
    vocab, tail, count = 32_768, 1e-3, 8_000
    each = tail / (vocab - 1)
    rate_of_the_mistake = math.exp(-(2.0**-24) / each)
    assert rate_of_the_mistake < 0.15
    logits_V = torch.full((vocab,), math.log(each))
    logits_V[vocab // 2] = math.log(1 - tail)
    drawn = torch.cat([draws(logits_V, 50, seed=part) for part in range(count // 50)])
    hits = (drawn != vocab // 2).sum().item()
    assert hits == pytest.approx(tail * count, abs=3 * math.sqrt(tail * count))
    assert hits > 3 * rate_of_the_mistake * tail * count


def test_float32_gumbel_noise_is_cut_off_where_the_test_above_says() -> None:
    largest = torch.tensor(1 - 2.0**-24, dtype=torch.float32)
    assert -torch.log(-torch.log(largest)).item() == pytest.approx(16.635, abs=1e-3)


def test_minus_infinity_is_never_drawn() -> None:
    logits_V = torch.tensor([-math.inf, 0.0, -math.inf, -30.0, -math.inf])
    assert set(draws(logits_V, 20_000).tolist()) == {1}
    only_last = torch.tensor([-math.inf, -math.inf, 0.0])
    only_first = torch.tensor([0.0, -math.inf, -math.inf])
    assert set(draws(only_last, 1000).tolist()) == {2}
    assert set(draws(only_first, 1000).tolist()) == {0}


def test_one_sequence_draws_the_same_whatever_the_chunks() -> None:
    logits_NV = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    whole = draw(logits_NV, [seeds.generator(5)] * 40)
    generator = seeds.generator(5)
    parts = [draw(part, [generator] * len(part)) for part in logits_NV.split([1, 16, 17, 6])]
    assert torch.equal(whole, torch.cat(parts))


def test_each_row_draws_from_its_own_generator() -> None:
    """Interleaved sequences draw what each draws alone."""
    logits_NV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    a, b = seeds.generator(1), seeds.generator(2)
    together = draw(logits_NV, [a, b, a, a, b, b])
    alone_a = draw(logits_NV[[0, 2, 3]], [seeds.generator(1)] * 3)
    alone_b = draw(logits_NV[[1, 4, 5]], [seeds.generator(2)] * 3)
    assert torch.equal(together[[0, 2, 3]], alone_a)
    assert torch.equal(together[[1, 4, 5]], alone_b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="logits are not finite; its weights are damaged or diverged"):
        draws(torch.tensor([0.0, bad, 1.0]), 2)


def test_a_row_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        draws(torch.full((3,), -math.inf), 1)
