"""`bench quality`: what kept keys and values, and 8-bit weights, cost in quality and save in time.

Each model writes the same number of texts at each number of steps and refresh interval, and a judge
scores them, so that rows compare at equal compute (`full_passes`) and at equal wall-clock.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.benchmark.machine import checked_device, describe
from fewstep.benchmark.plot import described
from fewstep.evaluation.comparison import Progress, Row, compare
from fewstep.evaluation.judge import load_judge
from fewstep.evaluation.samples import Samples
from fewstep.sampling.text_model import load

INT8 = " int8"


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What `bench quality` runs; the command describes each field."""

    models: tuple[str, ...]
    steps: tuple[int, ...]
    cache_refresh: tuple[int, ...]
    int8: bool
    samples: Samples
    judge: str
    device: str

    def __post_init__(self) -> None:
        checked_device(self.device)
        if not (self.models and self.steps and self.cache_refresh):
            raise ValueError("models, steps or cache_refresh is empty; name at least one of each")
        if min(self.steps) < 1 or min(self.cache_refresh) < 0:
            raise ValueError("steps must be at least 1, and cache_refresh at least 0, which is never")


def run_quality(settings: QualitySettings, progress: Progress | None = None) -> dict[str, Any]:
    """Return `rows`, those of `Row.record` with their standard errors, and the machine.

    Raises:
        ValueError: if a model or the judge is not there, or cannot write such texts.
    """
    models = {name: load(name, device=settings.device) for name in settings.models}
    quantized = {}
    if settings.int8:
        denoisers = [name for name, model in models.items() if model.is_denoiser]
        quantized = {name + INT8: load(name, device=settings.device, int8=True) for name in denoisers}
    judge = load_judge(settings.judge, device=settings.device)
    shared: dict[str, Any] = {"steps": settings.steps, "samples": settings.samples, "progress": progress}
    rows = compare(models, judge, cache_refreshes=settings.cache_refresh, **shared)
    if quantized:
        rows += compare(quantized, judge, **shared)
    return {
        "benchmark": "quality",
        "rows": [record(row) for row in rows],
        "settings": asdict(settings),
        "machine": describe(torch.device(settings.device)),
    }


def record(row: Row) -> dict[str, Any]:
    """Return a row for a program to read, with the standard errors of what the judge finds."""
    return {
        **row.record(),
        "gen_ppl_standard_error": row.judged.perplexity_standard_error,
        "bits_per_byte_standard_error": row.judged.bits_per_byte_standard_error,
        "entropy_standard_error": row.entropy_standard_error,
    }


def plot_quality(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of generative perplexity and entropy against compute and wall-clock, a line an interval."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows if row["steps"] and INT8 not in row["model"]))
    panels_of = [
        (against, quality) for quality in ("gen_ppl", "entropy") for against in ("full_passes", "seconds")
    ]
    figure = Figure(figsize=(3.4 * len(panels_of), 3.0 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), len(panels_of), squeeze=False)
    refreshes = sorted(
        {row["cache_refresh"] for row in rows if row["steps"]}, key=lambda refresh: refresh or float("inf")
    )
    for model, row_of_panels in zip(models, panels, strict=True):
        for (against, quality), panel in zip(panels_of, row_of_panels, strict=True):
            for place, refresh in enumerate(refreshes):
                line = [row for row in rows if (row["model"], row["cache_refresh"]) == (model, refresh)]
                color = colormaps["viridis"](0.9 * place / max(1, len(refreshes) - 1))
                panel.plot(
                    [row[against] for row in line],
                    [row[quality] for row in line],
                    marker="o",
                    color=color,
                    label=described(refresh),
                )
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.set_xlabel("full passes" if against == "full_passes" else "seconds a batch")
            panel.set_ylabel("generative perplexity" if quality == "gen_ppl" else "unigram entropy (nats)")
            panel.set_title(model, fontsize=9)
            panel.grid(alpha=0.3)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=130)
