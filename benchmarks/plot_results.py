"""Draw the plots of docs/results.md from the rows of one or several evaluations.

    python benchmarks/plot_results.py docs/images/in_small.png benchmarks/in_small.json

Quality and diversity against steps, a line a round of distillation, and quality against seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.evaluation.evaluation_report import lines_of

PANELS = (
    ("steps", "gen_ppl", "steps", "generative perplexity"),
    ("steps", "entropy", "steps", "unigram entropy (nats)"),
    ("seconds_per_sample", "gen_ppl", "seconds a text", "generative perplexity"),
)


def color_of(label: str, rounds: list[str]) -> Any:
    if label in rounds:
        return colormaps["viridis"](0.1 + 0.8 * rounds.index(label) / max(len(rounds) - 1, 1))
    if label.startswith("sotu-autoregressive"):
        return "tab:red"
    return "tab:orange" if "student" in label else "black"


def draw(panel: Axes, lines: dict[str, list[dict[str, Any]]], x: str, y: str) -> None:
    rounds = [label for label in lines if label.startswith("round_")]
    dashes = iter([(0, (1, 1)), (0, (4, 2)), (0, (6, 1, 1, 1))])
    for label, line in lines.items():
        color = color_of(label, rounds)
        if line[0]["steps"] is None and x == "steps":
            panel.axhline(line[0][y], color=color, linestyle=next(dashes), label=label)
            continue
        panel.errorbar(
            [row[x] for row in line],
            [row[y] for row in line],
            [row[f"{y}_standard_error"] for row in line],
            color=color,
            marker="o",
            markersize=4,
            label=label,
        )
    panel.set_xscale("log", base=2 if x == "steps" else 10)
    if x == "steps":
        ticks = sorted({row["steps"] for line in lines.values() for row in line if row["steps"]})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
    if y == "gen_ppl":
        panel.set_yscale("log")
    panel.grid(alpha=0.3)


def main(target: Path, sources: list[Path]) -> None:
    lines = lines_of([row for source in sources for row in json.loads(source.read_text())["rows"]])
    figure = Figure(figsize=(13, 4), layout="constrained")
    for panel, (x, y, x_label, y_label) in zip(figure.subplots(1, 3), PANELS, strict=True):
        draw(panel, lines, x, y)
        panel.set_xlabel(x_label)
        panel.set_ylabel(y_label)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(source) for source in sys.argv[2:]])
