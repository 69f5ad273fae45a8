"""`fewstep demo`: distil the shipped teacher for minutes, then compare all models and write a report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.progress import Bars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewstep.evaluation.comparison import Row
    from fewstep.evaluation.report import LiveRound
    from fewstep.evaluation.samples import Samples
    from fewstep.sampling.text_model import TextModel

SHIPPED_STUDENT = "sotu-student"
LONGEST_TEXT = 256
"""Tokens of a text, where the models' context is longer."""
LIVE_BATCH_SIZE = 8
LIVE_LEARNING_RATE = 1e-4
LIVE_BASE_STEPS = 32
LIVE_TEACHER_STEPS = 4
"""Large enough that minutes show a fall: the closer student and teacher begin, the less there is to learn."""
PROBE_CONTEXTS = 16


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a demo spends; on two idle cores about ten minutes, or two and a half if quick."""

    num_rounds: int
    training_steps: int
    steps: tuple[int, ...]
    num_samples: int
    batch_size: int


FULL = Budget(num_rounds=2, training_steps=45, steps=(4, 8, 16, 32, 64, 128), num_samples=8, batch_size=4)
QUICK = Budget(num_rounds=1, training_steps=18, steps=(4, 16, 64), num_samples=4, batch_size=2)


def demo(
    *,
    output: str = "report",
    quick: bool = False,
    seed: int = 0,
    teacher: str = "sotu-teacher",
    student: str = SHIPPED_STUDENT,
    autoregressive: str = "sotu-autoregressive",
    corpus: str = "sotu",
    judge: str = "smollm2",
    training_steps: int | None = None,
    num_samples: int | None = None,
) -> None:
    """Distil the shipped teacher live, and compare it with its students and a baseline in a report.

    Writes `output`/report.html, prints its table, and last one line of JSON. A demo that was stopped
    goes on with its live distillation when it is run again, and uses a finished one as it is.

    Args:
        output: Directory of the report and of the live distillation.
        quick: Under three minutes: fewer training steps, numbers of steps, and texts.
        seed: Of the live distillation and of the texts.
        teacher: Denoiser to distil: a shipped model or a checkpoint directory.
        student: Student of the teacher that was distilled for longer.
        autoregressive: Baseline that writes one token a pass.
        corpus: Text to distil on: a file, a directory, or "sotu".
        judge: Causal language model that scores the texts.
        training_steps: Training steps of each live round; by default what fits the time.
        num_samples: Texts of each row; by default what fits the time.

    Raises:
        ValueError: if a model is absent or does not fit the others, or a setting is out of range.
    """
    started = time.monotonic()
    if find_spec("matplotlib") is None:
        raise ValueError(
            "the report needs matplotlib, which is not installed; run: pip install 'fewstep[demo]'"
        )
    budget = QUICK if quick else FULL
    if training_steps is not None:
        budget = replace(budget, training_steps=training_steps)
    if num_samples is not None:
        budget = replace(budget, num_samples=num_samples)
    models = load_models(teacher, student, autoregressive)

    from fewstep.evaluation.comparison import compare
    from fewstep.evaluation.judge import load_judge
    from fewstep.evaluation.report import write_report
    from fewstep.evaluation.report_notes import (
        LIVE,
        ROLES,
        SHIPPED,
        TEACHER,
        contenders,
        live_description,
        method,
    )
    from fewstep.evaluation.samples import Samples
    from fewstep.training.metrics import logger

    samples = Samples(
        num_samples=budget.num_samples,
        batch_size=budget.batch_size,
        length=min(LONGEST_TEXT, *(model.network.max_length for model in models.values())),
        seed=seed,
    )
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output {output!r} is a file; name a directory")
    logger.info("loading the judge %s; its first time takes half a minute", judge)
    scorer = load_judge(judge)
    run = directory / ("live-quick" if quick else "live")
    models[LIVE] = distil_live(run, teacher, corpus, budget, samples)
    models = {role: models[role] for role in ROLES}
    with Bars() as bars:
        rows = compare(models, scorer, steps=budget.steps, samples=samples, progress=bars.update)
    print_table(rows)
    live_settings = models[LIVE].manifest["settings"]
    rounds, training_seconds = live_record(run, samples.length)
    minutes = (time.monotonic() - started) / 60
    write_report(
        directory / "report.html",
        rows=rows,
        contenders=contenders(models, training_seconds, None if student == SHIPPED_STUDENT else student),
        student=SHIPPED,
        teacher=TEACHER,
        samples=samples,
        live=live_description(rounds, live_settings, training_seconds),
        live_rounds=rounds,
        method=method(samples, judge, live_settings, minutes),
    )
    print(f"report: {directory / 'report.html'}  ({minutes:.1f} minutes)")
    print(json.dumps({"rows": [row.record() for row in rows]}), flush=True)


def load_models(teacher: str, student: str, autoregressive: str) -> dict[str, TextModel]:
    """Return teacher, shipped student and autoregressive baseline.

    Raises:
        ValueError: if one is absent, of the wrong kind, or of another vocabulary than the teacher.
    """
    from fewstep.evaluation.report_notes import AUTOREGRESSIVE, SHIPPED, TEACHER
    from fewstep.models.checkpoint import resolve, shipped_models
    from fewstep.sampling.text_model import load

    models = {}
    names = {TEACHER: teacher, SHIPPED: student, AUTOREGRESSIVE: autoregressive}
    for (role, name), flag in zip(names.items(), ("teacher", "student", "autoregressive"), strict=True):
        if not Path(resolve(name)).is_dir():
            there = ", ".join(shipped_models()) or "none"
            raise ValueError(
                f"there is no model {name!r}; --{flag} is a checkpoint directory or a shipped model "
                f"(installed: {there})"
            )
        model = load(name)
        if model.is_denoiser == (role == AUTOREGRESSIVE):
            kinds = ("a denoiser", "an autoregressive model")
            has, needs = kinds if model.is_denoiser else reversed(kinds)
            raise ValueError(f"{name} is {has}; --{flag} needs {needs}")
        models[role] = model
    vocabularies = {role: model.tokenizer.get_vocab() for role, model in models.items()}
    for role, vocabulary in vocabularies.items():
        if vocabulary != vocabularies[TEACHER]:
            raise ValueError(
                f"{names[role]} has another vocabulary than {teacher}, so their entropies do not compare; "
                "choose models of one tokenizer"
            )
    return models


def distil_live(run: Path, teacher: str, corpus: str, budget: Budget, samples: Samples) -> TextModel:
    """Return the student that a short distillation in `run` makes, or goes on to make, or has made."""
    from fewstep.data.corpora import Corpus
    from fewstep.distillation.rounds import RoundsConfig
    from fewstep.sampling.text_model import load
    from fewstep.training.distill import distill
    from fewstep.training.loop import LoopConfig
    from fewstep.training.metrics import logger
    from fewstep.training.optimizer import OptimizerConfig
    from fewstep.training.run import DataConfig

    updates = budget.training_steps
    third = max(1, updates // 3)
    logger.info("distilling %s live in %s: %d x %d training steps", teacher, run, budget.num_rounds, updates)
    path = distill(
        output=str(run),
        teacher=teacher,
        rounds=RoundsConfig(
            base_steps=LIVE_BASE_STEPS, teacher_steps=LIVE_TEACHER_STEPS, num_rounds=budget.num_rounds
        ),
        data=DataConfig(
            corpus=Corpus(source=corpus), validation_contexts=PROBE_CONTEXTS, context_length=samples.length
        ),
        optimizer=OptimizerConfig(learning_rate=LIVE_LEARNING_RATE, warmup=max(1, third), beta2=0.99),
        loop=LoopConfig(
            training_steps=updates,
            batch_size=LIVE_BATCH_SIZE,
            log_every=1,
            validate_every=third,
            save_every=third,
            seed=samples.seed,
        ),
    )
    return load(path)


def live_record(run: Path, context_length: int) -> tuple[list[LiveRound], float]:
    """Return what the metrics of `run` say: each round's probe, and the seconds spent on updates."""
    from fewstep.evaluation.report import LiveRound

    probes: dict[int, dict[int, float]] = {}
    speeds: dict[int, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key, into in (("probe_divergence", probes), ("tokens_per_second", speeds)):
            if key in record:
                into.setdefault(record["round_index"], {})[record["training_step"]] = record[key]
    seconds = 0.0
    for speed_at in speeds.values():
        before = 0
        for training_step, speed in sorted(speed_at.items()):
            seconds += (training_step - before) * LIVE_BATCH_SIZE * context_length / speed
            before = training_step
    rounds = []
    for round_index, divergence_at in sorted(probes.items()):
        training_steps, divergences = zip(*sorted(divergence_at.items()), strict=True)
        manifest = json.loads((run / f"round_{round_index}" / "manifest.json").read_text())
        rounds.append(
            LiveRound(delta=manifest["delta"], training_steps=training_steps, divergences=divergences)
        )
    return rounds, seconds


def print_table(rows: Sequence[Row]) -> None:
    """Print `rows` for people."""
    from rich.console import Console
    from rich.table import Table

    from fewstep.evaluation.report_page import with_error

    table = Table()
    for title in ("model", "steps", "gen. perplexity", "bits/byte", "entropy", "seconds"):
        table.add_column(title, justify="left" if title == "model" else "right")
    last = None
    for row in rows:
        if last not in (None, row.model):
            table.add_section()
        judged = row.judged
        table.add_row(
            row.model if row.model != last else "",
            "-" if row.steps is None else str(row.steps),
            with_error(judged.perplexity, judged.perplexity_standard_error, 1),
            f"{judged.bits_per_byte:.2f}",
            with_error(row.entropy, row.entropy_standard_error, 2),
            f"{row.seconds:.2f}",
        )
        last = row.model
    Console().print(table)
