"""What a run reports: a JSONL record, an optional tracker, and a progress bar with loss and speed."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger("fewstep")
SECONDS_BETWEEN_LINES = 30.0


class MetricsRecord:
    """Appends records to `metrics.jsonl` and hands their numbers to the trackers of `accelerator`.

    Records behind the place that a run resumes at, which it makes again, are dropped first; all of them
    if it resumes nowhere.
    """

    def __init__(
        self, run_directory: Path, accelerator: Accelerator, *, resume_at: tuple[int, int] | None
    ) -> None:
        self.accelerator = accelerator
        self.path = run_directory / "metrics.jsonl"
        if accelerator.is_main_process and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _is_before(line, resume_at)]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def add(self, round_index: int, training_step: int, numbers: Mapping[str, float | int]) -> None:
        """Record `numbers` after `training_step` updates of round `round_index`."""
        if not self.accelerator.is_main_process:
            return
        record = {"round_index": round_index, "training_step": training_step, **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log(dict(record), step=training_step)


def _is_before(line: str, place: tuple[int, int] | None) -> bool:
    if place is None:
        return False
    try:
        record = json.loads(line)
    except ValueError:  # the half line of a killed run
        return False
    return (record["round_index"], record["training_step"]) <= place


class ProgressBar:
    """Shows training on a terminal; writes a line now and then to the log where there is none."""

    def __init__(self, name: str, total: int, done: int, *, shown: bool) -> None:
        self.name, self.total = name, total
        self.started, self.first, self.last_line = time.monotonic(), done, 0.0
        self.shown = shown
        self.bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(name, total=total, completed=done, status="")

    def __enter__(self) -> "ProgressBar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: int, status: str) -> None:
        """Show that `done` updates are made, with `status` beside."""
        if self.bar:
            self.bar.update(self.task, completed=done, status=status)
        elif self.shown and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            left = (self.last_line - self.started) / max(done - self.first, 1) * (self.total - done)
            logger.info("%s %d/%d  %s  %.0f s left", self.name, done, self.total, status, left)
