"""The frontier of quality and diversity, and comparison at matched entropy.

A lower temperature lowers both the generative perplexity and the entropy of a text, so a perplexity alone
can be had at the price of repetition. A sweep of temperatures gives a curve of perplexity against entropy;
two models compare where their curves have the same entropy. Between two measured points log-perplexity is
taken to be linear in entropy; beyond the last points nothing is known, and nothing is said.

Source of the idea for text: Caccia et al., "Language GANs Falling Short" (2020), temperature sweeps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]
"""A row of an evaluation: settings and metrics by name."""
CURVE_SETTINGS = ("model", "steps", "cache_refresh", "top_p")
"""What the rows of one curve have in common; they differ in temperature."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one temperature gave."""

    entropy: float
    """Mean unigram entropy, in nats."""
    perplexity: float
    """Generative perplexity."""
    perplexity_standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A generative perplexity read from a curve at an entropy that nobody measured."""

    perplexity: float
    standard_error: float
    """First order, from the two neighbours' errors, taken as independent."""


def entropy_range(curve: Sequence[Point]) -> tuple[float, float]:
    """Return the lowest and the highest entropy of a curve.

    Raises:
        ValueError: if it has no point.
    """
    if not curve:
        raise ValueError("a frontier needs at least one measured point")
    entropies = [point.entropy for point in curve]
    return min(entropies), max(entropies)


def at_entropy(curve: Sequence[Point], entropy: float) -> Matched:
    """Return the generative perplexity of `curve` where its entropy is `entropy`.

    log P(H) = (1 - w) log P_a + w log P_b with w = (H - H_a) / (H_b - H_a) between the neighbours a and b
    in entropy. Where neighbours have the same entropy, w is 1/2.

    Args:
        curve: Points in any order.
        entropy: H, in nats.

    Raises:
        ValueError: if the curve has no point, or `entropy` lies outside of what was measured.
    """
    low, high = entropy_range(curve)
    if not low <= entropy <= high:
        raise ValueError(
            f"entropy {entropy:.3f} lies outside of the measured {low:.3f} to {high:.3f}; "
            "measure more temperatures, since a frontier is not extrapolated"
        )
    points = sorted(curve, key=lambda point: point.entropy)
    for a, b in pairwise(points):
        if a.entropy <= entropy <= b.entropy:
            width = b.entropy - a.entropy
            weight = (entropy - a.entropy) / width if width > 0 else 0.5
            perplexity = math.exp((1 - weight) * math.log(a.perplexity) + weight * math.log(b.perplexity))
            relative = math.hypot(
                (1 - weight) * a.perplexity_standard_error / a.perplexity,
                weight * b.perplexity_standard_error / b.perplexity,
            )
            return Matched(perplexity=perplexity, standard_error=perplexity * relative)
    return Matched(perplexity=points[0].perplexity, standard_error=points[0].perplexity_standard_error)


def fewest_steps(curves: Mapping[int, Sequence[Point]], entropy: float, perplexity: float) -> int | None:
    """Return the fewest steps at which a model reaches `perplexity` or less at `entropy`; None if at none.

    Args:
        curves: A curve for each number of steps; those that do not reach `entropy` do not count.
        entropy: Unigram entropy to compare at, in nats.
        perplexity: Generative perplexity to reach there, such as a teacher's.
    """
    for steps in sorted(curves):
        low, high = entropy_range(curves[steps])
        if low <= entropy <= high and at_entropy(curves[steps], entropy).perplexity <= perplexity:
            return steps
    return None


def curves_of(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Point]]:
    """Return the curve of each model, number of steps, refresh interval and top-p, by these four.

    Rows without a generative perplexity or an entropy are left out.
    """
    curves: dict[tuple[Any, ...], list[Point]] = {}
    for row in rows:
        if "gen_ppl" in row and "entropy" in row:
            point = Point(
                entropy=row["entropy"],
                perplexity=row["gen_ppl"],
                perplexity_standard_error=row.get("gen_ppl_standard_error", 0.0),
            )
            curves.setdefault(tuple(row[key] for key in CURVE_SETTINGS), []).append(point)
    return curves


def reference_of(rows: Sequence[Row]) -> Row | None:
    """Return the row of the first model at its most steps and the temperature nearest to 1.

    None if it has no generative perplexity or no entropy.
    """
    own = [row for row in rows if row["model"] == rows[0]["model"] and {"gen_ppl", "entropy"} <= row.keys()]
    if not own:
        return None
    return min(own, key=lambda row: (-(row["steps"] or 0), abs(row["temperature"] - 1)))


def matched(rows: Sequence[Row], entropy: float | None = None) -> dict[str, Any]:
    """Return every curve's generative perplexity at one entropy, None where it was not measured.

    `fewest_steps` says for each denoiser and refresh interval how many steps reach the perplexity that the
    reference, the curve of `reference_of`, has there.

    Args:
        rows: Rows of an evaluation.
        entropy: In nats; by default that of the reference.
    """
    reference = reference_of(rows)
    if reference is None:
        return {"entropy": entropy, "reference": None, "curves": [], "fewest_steps": []}
    entropy = reference["entropy"] if entropy is None else entropy
    assert entropy is not None
    curves = curves_of(rows)
    compared = []
    for settings, curve in curves.items():
        found = _at_entropy_if_measured(curve, entropy)
        compared.append(
            {
                **dict(zip(CURVE_SETTINGS, settings, strict=True)),
                "entropy_range": list(entropy_range(curve)),
                "gen_ppl": found and found.perplexity,
                "gen_ppl_standard_error": found and found.standard_error,
            }
        )
    key = {name: reference[name] for name in CURVE_SETTINGS}
    there = _at_entropy_if_measured(curves[tuple(key.values())], entropy)
    by_model: dict[tuple[str, int], dict[int, Sequence[Point]]] = {}
    for (model, steps, cache_refresh, _), curve in curves.items():
        if steps is not None:
            by_model.setdefault((model, cache_refresh), {})[steps] = curve
    fewest = [
        {"model": model, "cache_refresh": refresh, "steps": fewest_steps(own, entropy, there.perplexity)}
        for (model, refresh), own in by_model.items()
        if there is not None
    ]
    return {"entropy": entropy, "reference": key, "curves": compared, "fewest_steps": fewest}


def _at_entropy_if_measured(curve: Sequence[Point], entropy: float) -> Matched | None:
    low, high = entropy_range(curve)
    return at_entropy(curve, entropy) if low <= entropy <= high else None
