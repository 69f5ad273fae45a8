"""Temperature, top-k and top-p by hand."""

import math

import pytest
import torch

from fewstep.sampling.sharpening import Sharpening

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def sharpened(probabilities: torch.Tensor, **settings: float) -> list[float]:
    return Sharpening(**settings)(probabilities.log()).softmax(-1).squeeze(0).tolist()


def test_defaults_return_the_very_logits() -> None:
    logits = P.log()
    assert Sharpening()(logits) is logits


def test_temperature_raises_probabilities_to_a_power() -> None:
    """At temperature 1/2, p^2 / sum: 1, 16, 4 and 9 thirtieths."""
    assert sharpened(P, temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    roots = [math.sqrt(p) for p in P[0].tolist()]
    assert sharpened(P, temperature=2.0) == pytest.approx([root / sum(roots) for root in roots])


def test_temperature_zero_takes_the_most_probable() -> None:
    assert sharpened(P, temperature=0.0) == [0, 1, 0, 0]
    assert sharpened(P, temperature=1e-42) == [0, 1, 0, 0]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.1}])
def test_of_equals_exactly_one_is_taken(settings: dict[str, float]) -> None:
    tied = sharpened(torch.tensor([[0.3, 0.3, 0.3, 0.1]]), **settings)
    assert sorted(tied) == [0, 0, 0, 1]
    assert tied[3] == 0


def test_top_k() -> None:
    assert sharpened(P, top_k=1) == [0, 1, 0, 0]
    assert sharpened(P, top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert sharpened(P, top_k=4) == pytest.approx(P[0].tolist())
    assert sharpened(P, top_k=99) == pytest.approx(P[0].tolist())


def test_top_k_of_equals_keeps_exactly_k() -> None:
    kept = sharpened(torch.tensor([[0.2, 0.2, 0.2, 0.4]]), top_k=2)
    assert sorted(kept) == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert kept[3] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, [0, 1, 0, 0]),
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.95, [0.1, 0.4, 0.2, 0.3]),
        (1.0, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p_keeps_the_fewest_that_hold_p(top_p: float, kept: list[float]) -> None:
    assert sharpened(P, top_p=top_p) == pytest.approx(kept)


def test_top_p_on_a_boundary_is_reached_by_the_tokens_before() -> None:
    """Half and half of the rest: the first holds exactly 0.5, so 0.5 takes it alone."""
    exact = torch.tensor([[0.5, 0.25, 0.25]])
    assert sharpened(exact, top_p=0.5) == [1, 0, 0]
    assert sharpened(exact, top_p=0.51) == pytest.approx([2 / 3, 1 / 3, 0])


def test_order_is_temperature_then_top_k_then_top_p() -> None:
    """p^2 of the top 2 are 16/25 and 9/25, so 0.6 keeps one; before temperature it would keep two."""
    assert sharpened(P, temperature=0.5, top_k=2, top_p=0.6) == [0, 1, 0, 0]
    assert sharpened(P, top_k=2, top_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert sharpened(P, top_k=3, top_p=0.75) == pytest.approx([0, 4 / 7, 0, 3 / 7])  # 7/9 > 0.75


def test_rows_are_sharpened_alone() -> None:
    both = torch.cat([P, P.flip(1)])
    result = Sharpening(top_p=0.5)(both.log()).softmax(-1)
    assert result[0].tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert result[1].tolist() == pytest.approx([3 / 7, 0, 4 / 7, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_refusals(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharpening(**settings)
