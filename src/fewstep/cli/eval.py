"""`fewstep eval MODEL...`: evaluate models, print the table, and last a line of JSON."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.cli.bench import print_table
from fewstep.cli.progress import Bars
from fewstep.evaluation.evaluate import REPORT, evaluate
from fewstep.evaluation.evaluation_report import cell, columns, setting
from fewstep.evaluation.frontier import Row
from fewstep.training.settings import save_settings


@functools.wraps(evaluate)
def evaluate_models(**settings: Any) -> None:
    """Measure quality, diversity and time of one or several models at each number of steps."""
    with Bars() as bars:
        result = evaluate(**settings, progress=bars.update)
    if result is None:
        return
    output = Path(settings["output"])
    save_settings(output, {name: _plain(value) for name, value in settings.items()})
    print_rows(result.rows)
    print(f"report: {output / REPORT}")
    print(json.dumps({"rows": result.rows, "frontier": result.frontier}), flush=True)
    if result.failures:
        raise ValueError("; ".join(result.failures))


_signature = inspect.signature(evaluate)
_flags = [flag for name, flag in _signature.parameters.items() if name != "progress"]
evaluate_models.__signature__ = _signature.replace(parameters=_flags, return_annotation=None)  # pyright: ignore


def print_rows(rows: Sequence[Row]) -> None:
    """Print `rows` for people."""
    settings, metrics = columns(rows)
    lines = [
        [setting(row, name) for name in settings] + [cell(row, metric) for metric in metrics] for row in rows
    ]
    print_table([*settings, *metrics], lines)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # pyright: ignore
