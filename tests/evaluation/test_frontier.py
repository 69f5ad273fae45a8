"""The frontier by hand: interpolation between measured points, and nothing beyond them."""

import math
from typing import Any

import pytest

from fewstep.evaluation.frontier import Point, at_entropy, entropy_range, fewest_steps, matched

CURVE = [
    Point(entropy=5.0, perplexity=400.0, perplexity_standard_error=40.0),
    Point(entropy=4.0, perplexity=100.0, perplexity_standard_error=10.0),
    Point(entropy=3.0, perplexity=81.0, perplexity_standard_error=2.0),
]


def test_log_perplexity_is_linear_between_neighbours() -> None:
    assert at_entropy(CURVE, 4.5).perplexity == pytest.approx(200.0)  # sqrt(100 * 400)
    assert at_entropy(CURVE, 4.25).perplexity == pytest.approx(100 * 4**0.25)
    assert at_entropy(CURVE, 3.5).perplexity == pytest.approx(90.0)


def test_measured_points_are_kept() -> None:
    for point in CURVE:
        matched = at_entropy(CURVE, point.entropy)
        assert matched.perplexity == pytest.approx(point.perplexity)
        assert matched.standard_error == pytest.approx(point.perplexity_standard_error)
    alone = at_entropy(CURVE[:1], 5.0)
    assert (alone.perplexity, alone.standard_error) == (400.0, 40.0)


def test_the_error_joins_those_of_the_neighbours() -> None:
    # Both have a relative error of 0.1; halfway each counts half.
    assert at_entropy(CURVE, 4.5).standard_error == pytest.approx(200 * 0.1 / math.sqrt(2))
    assert at_entropy(CURVE, 3.25).standard_error == pytest.approx(
        81 ** (3 / 4) * 100 ** (1 / 4) * math.hypot(0.75 * 2 / 81, 0.25 * 0.1)
    )


def test_points_of_one_entropy_meet_in_their_geometric_mean() -> None:
    twins = [Point(entropy=4.0, perplexity=50.0), Point(entropy=4.0, perplexity=200.0)]
    assert at_entropy(twins, 4.0).perplexity == pytest.approx(100.0)


@pytest.mark.parametrize("entropy", [2.999, 5.001, math.nan])
def test_nothing_is_extrapolated(entropy: float) -> None:
    with pytest.raises(ValueError, match=r"outside of the measured 3\.000 to 5\.000; measure more"):
        at_entropy(CURVE, entropy)


def test_an_empty_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one measured point"):
        entropy_range([])


def test_the_fewest_steps_are_those_that_reach_the_perplexity_at_that_entropy() -> None:
    curves = {
        16: [Point(entropy=4.0, perplexity=90.0), Point(entropy=5.0, perplexity=90.0)],
        8: [Point(entropy=4.0, perplexity=100.0), Point(entropy=5.0, perplexity=400.0)],
        4: [Point(entropy=2.0, perplexity=5.0), Point(entropy=3.0, perplexity=10.0)],  # repeats itself
    }
    assert fewest_steps(curves, 4.5, 200.001) == 8
    assert fewest_steps(curves, 4.5, 199.0) == 16
    assert fewest_steps(curves, 4.5, 89.0) is None
    assert fewest_steps(curves, 2.5, 200.0) == 4


def row(model: str, steps: int | None, temperature: float, **found: float) -> dict[str, Any]:
    refresh = None if steps is None else 1
    settings = {"steps": steps, "temperature": temperature, "cache_refresh": refresh, "top_p": 1.0}
    return {"model": model, **settings, **found}


ROWS = [
    row("teacher", 16, 1.0, entropy=5.0, gen_ppl=300.0),
    row("teacher", 64, 0.9, entropy=4.0, gen_ppl=100.0),
    row("teacher", 64, 1.1, entropy=5.0, gen_ppl=400.0, gen_ppl_standard_error=40.0),
    row("student", 8, 0.9, entropy=4.0, gen_ppl=64.0),
    row("student", 8, 1.0, entropy=5.0, gen_ppl=256.0),
    row("student", 4, 0.9, entropy=4.0, gen_ppl=400.0),
    row("student", 4, 1.0, entropy=5.0, gen_ppl=400.0),
    row("ar", None, 1.0, entropy=4.9, gen_ppl=50.0),
    row("ar", None, 0.5, entropy=4.4, gen_ppl=50.0),
    row("other", 4, 1.0, entropy=4.5),
]


def test_curves_are_compared_at_one_entropy() -> None:
    found = matched(ROWS, 4.5)
    assert found["entropy"] == 4.5
    assert found["reference"] == {"model": "teacher", "steps": 64, "cache_refresh": 1, "top_p": 1.0}
    assert [(curve["model"], curve["steps"]) for curve in found["curves"]] == [
        ("teacher", 16), ("teacher", 64), ("student", 8), ("student", 4), ("ar", None),
    ]  # fmt: skip
    expected = [None, 200.0, 128.0, 400.0, 50.0]
    assert [curve["gen_ppl"] for curve in found["curves"]] == [pytest.approx(one) for one in expected]
    assert found["curves"][1]["gen_ppl_standard_error"] == pytest.approx(200 * 0.5 * 0.1)
    assert found["curves"][4]["entropy_range"] == [4.4, 4.9]
    assert found["fewest_steps"] == [
        {"model": "teacher", "cache_refresh": 1, "steps": 64},
        {"model": "student", "cache_refresh": 1, "steps": 8},
    ]


def test_the_entropy_is_by_default_that_of_the_first_model_at_its_most_steps() -> None:
    assert matched(ROWS)["entropy"] == 4.0  # both temperatures are as near to 1; the first counts
    assert matched(ROWS[::-1]) == {"entropy": None, "reference": None, "curves": [], "fewest_steps": []}
    assert matched(ROWS[7:])["reference"]["model"] == "ar"
    assert matched(ROWS, 9.0)["fewest_steps"] == []
