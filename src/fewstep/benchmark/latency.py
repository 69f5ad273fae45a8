"""`bench latency`: an autoregressive model with a KV cache against diffusion in few steps.

Same size, same kernels, same precision, same weights (untrained), same run: for each shape and batch,
everything is timed in turn. What is timed of each side, and how that gives the whole, is said in
`latency_cell`, `autoregressive` and `denoising`.
"""

from dataclasses import asdict
from typing import Any

import torch

from fewstep.benchmark import networks
from fewstep.benchmark.latency_cell import Cell
from fewstep.benchmark.latency_settings import LatencySettings, keys_of
from fewstep.benchmark.machine import describe
from fewstep.benchmark.measured_rows import MeasuredRows
from fewstep.benchmark.roofline import autoregressive_passes, diffusion_passes, roofline_seconds
from fewstep.benchmark.sampling import Progress

PER_ROW = ("shapes", "batches", "steps", "cache_refresh", "check")
"""Settings that choose rows and do not change what a row measures."""


def run_latency(
    settings: LatencySettings, progress: Progress, measured: MeasuredRows | None = None
) -> dict[str, Any]:
    """Return `rows` of `model, batch, steps, cache_refresh, seconds, tokens_per_second`, and the machine.

    Rows of the autoregressive model have `steps` and `cache_refresh` None. Those that `measured` holds
    already are not measured again; new ones are added to it when their shape and batch are done.

    Raises:
        ValueError: if some cell cannot fit; nothing has run then.
    """
    settings.check_memory()
    device = torch.device(settings.device)
    machine = describe(device)
    measured = measured or MeasuredRows(None)
    measured.conditions = {
        **{key: value for key, value in asdict(settings).items() if key not in PER_ROW},
        **{key: machine[key] for key in ("processor", "accelerator", "threads", "torch", "precision")},
    }
    shapes = sorted(settings.shapes, key=networks.num_parameters)
    check = None
    for shape in shapes:
        check = _run_shape(settings, shape, measured, progress, checked=shape == shapes[0]) or check
    rows = [measured.row(**key) for shape in shapes for key in keys_of(settings, shape)]
    return {
        "benchmark": "latency",
        "rows": [row | estimates(settings, row, machine) for row in rows],
        "check": check,
        "settings": asdict(settings),
        "machine": machine,
    }


def estimates(settings: LatencySettings, row: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Return what arithmetic adds to a measured row: its parameters and its roofline."""
    passes = (
        autoregressive_passes(settings.length)
        if row["steps"] is None
        else diffusion_passes(settings.length, row["steps"], row["cache_refresh"])
    )
    sizes = networks.sizes_of(row["model"], torch.device(settings.device))
    return {
        "parameters": networks.num_parameters(row["model"]),
        "roofline_seconds": roofline_seconds(sizes, passes, row["batch"], machine),
    }


def _run_shape(
    settings: LatencySettings, shape: str, measured: MeasuredRows, progress: Progress, *, checked: bool
) -> dict[str, Any] | None:
    """Measure the missing rows of a shape; return the check of the method, if it is to be `checked`."""
    checked = checked and settings.check
    missing = [key for key in keys_of(settings, shape) if key not in measured]
    if not missing and not checked:
        return None
    progress(f"{shape}: drawing untrained weights")
    denoiser, autoregressive = networks.new_pair(shape, torch.device(settings.device))
    for batch in settings.batches:
        keys = [key for key in missing if key["batch"] == batch]
        if not keys:
            continue
        for row in Cell(settings, shape, batch, denoiser, autoregressive).rows(keys, progress):
            measured.add(row)
            kind = "autoregressive" if row["steps"] is None else f"{row['steps']} steps"
            refresh = "" if row["steps"] is None else f", cache_refresh {row['cache_refresh']}"
            progress(
                f"{shape}, batch {batch}, {kind}{refresh}: {row['seconds']:.2f} s, "
                f"{row['tokens_per_second']:.1f} tokens/s"
            )
    if not checked:
        return None
    progress(f"{shape}: checking the method against full runs")
    return Cell(settings, shape, min(settings.batches), denoiser, autoregressive).check(measured)
