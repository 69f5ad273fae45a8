"""The jobs of an evaluation: a measurement of one subject, whose values are kept once they are there."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.evaluation.cells import Cell
from fewstep.evaluation.measurements import Measurement, Subject, Values
from fewstep.evaluation.processes import Share, wait_for
from fewstep.evaluation.samples import (
    SampleSet,
    digest_of,
    identity_of,
    read_json,
    replace_json,
    sample_set,
)
from fewstep.evaluation.sources import Sources, weights_of_model
from fewstep.sampling.text_model import TextModel

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, of one sample set or of a model."""

    measurement: Measurement
    cells: tuple[Cell, ...]
    """The cells whose rows its values belong to: one, or all of a model."""
    samples: SampleSet | None
    """The texts it reads, unless it reads the model alone."""
    path: Path
    """Where its values are kept."""

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.cells[0].model

    @property
    def title(self) -> str:
        """What it is, for a person."""
        steps = self.cells[0].sampling.steps
        where = "" if self.samples is None or steps is None else f" at {steps} steps"
        return f"{self.measurement.metrics[0]} of {self.model}{where}"

    def values(self) -> Values | None:
        """Return its values, or None while there are none.

        Raises:
            ValueError: if their file is damaged.
        """
        return read_json(self.path)["values"] if self.path.exists() else None

    def keep(self, values: Values) -> None:
        """Keep its values, but for standard errors that are not known."""
        known = {
            name: value
            for name, value in values.items()
            if not (isinstance(value, float) and math.isnan(value))
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(self.path, {"measurement": self.measurement.name, "of": self.title, "values": known})


def jobs_of(
    measurements: Sequence[Measurement],
    cells: Sequence[Cell],
    models: Mapping[str, TextModel],
    sources: Sources,
    output: Path,
) -> list[Job]:
    """Return the jobs of an evaluation kept in `output`: all cells of one measurement after another."""
    identities = {name: identity_of(model, weights_of_model(name)) for name, model in models.items()}
    sets = {
        (kind, cell): sample_set(
            output,
            models[cell.model],
            name=cell.model,
            weights=identities[cell.model]["weights"],
            sampling=cell.sampling,
            **sources.writing(kind),
        )
        for kind in dict.fromkeys(one.reads for one in measurements if one.reads != "model")
        for cell in cells
    }
    settings = sources.identities()
    jobs = []
    for measurement in measurements:
        subjects: list[tuple[tuple[Cell, ...], SampleSet | None, Any]]
        if measurement.reads == "model":
            own = {name: tuple(cell for cell in cells if cell.model == name) for name in models}
            subjects = [(own[name], None, identities[name]) for name in models]
        else:
            subjects = [
                ((cell,), one, one.digest) for (kind, cell), one in sets.items() if kind == measurement.reads
            ]
        for own_cells, samples, identity in subjects:
            used = {name: settings[name] for name in measurement.settings}
            name = f"{measurement.name}-{Path(own_cells[0].model).name}"
            path = output / "results" / f"{name}-{digest_of([measurement.name, used, identity])}.json"
            jobs.append(Job(measurement=measurement, cells=own_cells, samples=samples, path=path))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    models: Mapping[str, TextModel],
    sources: Sources,
    share: Share,
    progress: Progress,
) -> list[str]:
    """Do what is missing: write all samples, then measure. Return what failed, a line each.

    Process p of P writes the batches b with b % P = p of each set, and measures the jobs j with
    j % P = p. The first process returns when all are done.

    Raises:
        ValueError: if something failed in one of several processes, which others would wait for.
    """
    undone = [job for job in jobs if job.values() is None]
    if share.process == 0 and any(job.measurement.is_judged for job in undone):
        sources.judge  # noqa: B018 a judge that is not there is found now, and not after hours
    failures = write_samples(undone, models, share, progress)
    for number, job in enumerate(jobs):  # of all jobs: what is undone differs between processes
        progress("measuring", number, len(jobs))
        if job.values() is not None or (job.samples is not None and job.samples.digest in failures):
            continue
        if share.is_mine(number):
            try:
                written = None if job.samples is None else job.samples.read()
                subject = Subject(model=models[job.model], written=written, sources=sources)
                job.keep(job.measurement.measure(subject))
            except ValueError as error:
                if share.num_processes > 1:
                    raise
                failures[str(job.path)] = f"{job.title}: {error}"
    progress("measuring", len(jobs), len(jobs))
    if share.process == 0 and not failures:
        for job in jobs:
            wait_for(job.path)
    return list(failures.values())


def write_samples(
    jobs: Sequence[Job], models: Mapping[str, TextModel], share: Share, progress: Progress
) -> dict[str, str]:
    """Write the samples that `jobs` read; return what failed, by the digest of the set."""
    sets = {job.samples.digest: (job, job.samples) for job in jobs if job.samples is not None}
    total = sum(one.missing_passes(share) for _, one in sets.values())
    done, failures = 0, {}

    def advance(passes: int) -> None:
        nonlocal done
        done += passes
        progress("writing samples", done, total)

    advance(0)
    for digest, (job, samples) in sets.items():
        try:
            samples.write(models[job.model], share, advance)
        except ValueError as error:
            if share.num_processes > 1:
                raise
            failures[digest] = f"samples of {job.model}: {error}"
    return failures


def rows_of(cells: Sequence[Cell], jobs: Sequence[Job], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each cell, with `metrics` and what belongs to them, of the jobs that are finished."""
    wanted = {f"{metric}{suffix}" for metric in metrics for suffix in ("", "_standard_error", "_name")}
    rows = {cell: cell.row() for cell in cells}
    for job in jobs:
        values = job.values() or {}
        for cell in job.cells:
            rows[cell] |= {name: value for name, value in values.items() if name in wanted}
    return list(rows.values())


def examples_of(cells: Sequence[Cell], jobs: Sequence[Job]) -> list[str]:
    """Return the first text of each cell that begins with nothing; none if there are no such texts."""
    sets = {job.cells[0]: job.samples for job in jobs if job.measurement.reads == "texts" and job.samples}
    return [sets[cell].first_text() for cell in cells] if sets else []
