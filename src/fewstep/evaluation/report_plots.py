"""The plots of a report: SVG that takes its colours and its font from the page it stands in.

Matplotlib draws with placeholder colours, which become CSS variables of the page, so that one file is
legible on light and on dark ground. Models differ in marker and dash as well as in colour.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

WIDTH, HEIGHT = 4.4, 3.5
"""Inches; at 72 points an inch the text keeps its size in a column of a phone."""
COLORS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)"}
INK, MUTED, LINE = COLORS
MARKERS = ("o", "^", "s", "D", "v", "P")
NARROW_RANGE = 4.0
"""A range of values below this ratio is drawn on a linear axis, where it has room for ticks."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a plot; `number` decides its colour, --series-NUMBER of the page, and its marker."""

    number: int
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    """Half the height of the band around the line."""
    level: bool = False
    """Draw the only value of `y` as a dashed line across the plot, instead of points."""
    label: str = ""
    """Written at the last point."""

    @property
    def color(self) -> str:
        """The placeholder that becomes --series-NUMBER."""
        return f"#0404{self.number:02x}"


def plot(
    name: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    least_range: float = 0.0,
) -> str:
    """Return an SVG element of `series`.

    Args:
        name: Begins the ids inside the SVG, so that several can stand in one page; also its label.
        series: The lines; later ones are drawn over earlier ones.
        x_label, y_label: Names of the axes.
        x_ticks: Where the x axis is marked; by default matplotlib decides.
        log_x: A logarithmic x axis.
        log_y: A logarithmic y axis, if the values span enough for one.
        least_range: What the y axis spans at least.
    """
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11, "text.color": INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if log_x:
            axes.set_xscale("log", base=2)
        values = [value for one in series for value in one.y]
        if log_y and values and max(values) > NARROW_RANGE * min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        for one in series:
            _draw(axes, one)
        axes.margins(y=0.08)
        low, high = axes.get_ylim()
        if high - low < least_range:
            middle = (low + high) / 2
            axes.set_ylim(middle - least_range / 2, middle + least_range / 2)
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks))
        if log_x:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(x_label, color=MUTED)
        axes.set_ylabel(y_label, color=MUTED)
        axes.tick_params(colors=LINE, labelcolor=MUTED)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(LINE)
        drawn = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=metadata)
    return _for_page(drawn.getvalue(), name, series, f"{y_label} against {x_label}")


def _draw(axes: Axes, series: Series) -> None:
    if series.level:
        axes.axhline(series.y[0], color=series.color, linewidth=2, linestyle=(0, (5, 3)))
        return
    if series.error is not None:
        low = [y - error for y, error in zip(series.y, series.error, strict=True)]
        high = [y + error for y, error in zip(series.y, series.error, strict=True)]
        axes.fill_between(series.x, low, high, color=series.color, alpha=0.15, linewidth=0)
    marker = MARKERS[series.number % len(MARKERS)]
    axes.plot(series.x, series.y, color=series.color, marker=marker, markersize=6, linewidth=2)
    if series.label:
        place = (series.x[-1], series.y[-1])
        axes.annotate(
            series.label, place, (6, 0), textcoords="offset points", va="center", color=series.color
        )


def _for_page(svg: str, name: str, series: Sequence[Series], label: str) -> str:
    """Return the svg element alone, with the page's colours, its own ids, and no size but its ratio."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    colors = COLORS | {one.color: f"var(--series-{one.number})" for one in series}
    for placeholder, variable in colors.items():
        element = element.replace(placeholder, variable)
    return element.strip()
