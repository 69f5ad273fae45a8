"""The plot of `bench latency`: tokens a second against model size, a panel a batch and refresh interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

AUTOREGRESSIVE_STYLE = {"color": "black", "marker": "s", "linestyle": "--"}
WIDTH, HEIGHT = 3.6, 3.0
"""Inches of a panel."""


def plot_latency(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of `rows` to `path`."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    batches, refreshes, steps = (
        sorted({row[key] for row in rows if row[key] is not None})
        for key in ("batch", "cache_refresh", "steps")
    )
    refreshes.sort(key=lambda refresh: refresh or float("inf"))
    figure = Figure(figsize=(WIDTH * len(refreshes) + 1, HEIGHT * len(batches) + 0.6), layout="constrained")
    panels = figure.subplots(len(batches), len(refreshes), squeeze=False, sharex=True, sharey="row")
    colors = colormaps["viridis"]
    for batch, row_of_panels in zip(batches, panels, strict=True):
        for refresh, panel in zip(refreshes, row_of_panels, strict=True):
            draw_line(panel, rows, (batch, None, None), label="autoregressive", **AUTOREGRESSIVE_STYLE)
            for place, num_steps in enumerate(steps):
                style = {"color": colors(0.9 * place / max(1, len(steps) - 1)), "marker": "o"}
                draw_line(panel, rows, (batch, num_steps, refresh), label=f"{num_steps} steps", **style)
            panel.set_yscale("log")
            panel.set_title(f"batch {batch}, {described(refresh)}", fontsize=9)
            panel.grid(alpha=0.3, which="both")
    for panel in panels[:, 0]:
        panel.set_ylabel("tokens/s")
    for panel in panels[-1]:
        panel.set_xlabel("model")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)


def draw_line(
    panel: Any, rows: Sequence[dict[str, Any]], key: tuple[int, int | None, int | None], **style: Any
) -> None:
    """Draw the rows of one batch, steps and cache_refresh."""
    chosen = [row for row in rows if (row["batch"], row["steps"], row["cache_refresh"]) == key]
    names = [f"{row['model']}\n{row['parameters'] / 1e6:.0f}M" for row in chosen]
    panel.plot(names, [row["tokens_per_second"] for row in chosen], **style)


def described(cache_refresh: int) -> str:
    """Return a refresh interval in words."""
    if cache_refresh == 1:
        return "no cache"
    return "one full pass" if cache_refresh == 0 else f"full pass every {cache_refresh} steps"
