"""`fewstep.distill` end to end: rounds and their teachers, resuming after kill -9, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective, DivergenceProbe
from fewstep.distillation.rounds import RoundsConfig
from fewstep.models.checkpoint import load_model, read_manifest, save_checkpoint, weights_hash
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.training.distill import PROBE_SEED, distill
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import DataConfig
from fewstep.training.run_state import saved_place

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "condition_size": 8,
}
NOT_REPEATABLE = ("tokens_per_second",)


def checkpoint(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str = "diffusion",
    seed: int = 0,
    **shape: int,
) -> str:
    """Save a model whose every weight is random, so that its predictions depend on their context."""
    if kind == "diffusion":
        model = Denoiser(DenoiserConfig(**{**SHAPE, **shape}))
    else:
        model = AutoregressiveLM(AutoregressiveConfig(**{**SHAPE, **shape}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    save_checkpoint(directory, model, tokenizer, {"kind": kind})
    return str(directory)


@pytest.fixture
def teacher(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    return checkpoint(tmp_path / "teacher", tokenizer)


@pytest.fixture
def data(corpus_file: Path) -> DataConfig:
    return DataConfig(corpus=Corpus(source=str(corpus_file)), context_length=16, validation_contexts=4)


def loop(**settings: Any) -> LoopConfig:
    defaults = {"training_steps": 6, "batch_size": 4, "log_every": 1, "validate_every": 3, "save_every": 4}
    return LoopConfig(**{**defaults, "progress": False, **settings})


OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup=2)
THREE_ROUNDS = RoundsConfig(base_steps=16, num_rounds=3)


def metrics(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in r.items() if key not in NOT_REPEATABLE} for r in records]


def test_every_round_has_its_student_and_its_teacher(tmp_path: Path, teacher: str, data: DataConfig) -> None:
    run = tmp_path / "run"
    last = distill(
        output=str(run), teacher=teacher, rounds=THREE_ROUNDS, data=data, optimizer=OPTIMIZER, loop=loop()
    )
    assert last == run / "round_2"
    hashes = [weights_hash(teacher), *(weights_hash(run / f"round_{r}") for r in range(3))]
    assert len(set(hashes)) == 4
    for r in range(3):
        manifest = read_manifest(run / f"round_{r}")
        assert manifest["round_index"] == r
        assert manifest["num_steps"] == [8, 4, 2][r]
        assert manifest["delta"] == [1 / 16, 2 / 16, 4 / 16][r]
        assert manifest["teacher"] == hashes[r], "the teacher of a round is the student of the one before"
        assert manifest["weights"] == hashes[r + 1]
        assert manifest["tokens_seen"] == (r + 1) * 6 * 4 * 16
        assert manifest["settings"]["rounds"]["base_steps"] == 16
    places = [(m["round_index"], m["training_step"]) for m in metrics(run) if "loss" in m]
    assert places == [(r, step) for r in range(3) for step in range(1, 7)]
    probes = [(m["round_index"], m["training_step"]) for m in metrics(run) if "probe_divergence" in m]
    assert probes == [(r, step) for r in range(3) for step in (0, 3, 6)]


def test_mistake_every_round_with_the_first_teacher(
    tmp_path: Path, teacher: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The divergence that a round begins with is that from the student of the round before.

    A round begins with that student's weights, and its probe has a seed of its own.
    """
    run = tmp_path / "run"
    distill(
        output=str(run),
        teacher=teacher,
        rounds=THREE_ROUNDS,
        data=data,
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup=0),
        loop=loop(),
    )
    held_out = data.held_out(data.tokenize(tokenizer))

    def divergence(teacher_directory: Path, student_directory: Path, round_index: int) -> float:
        objective = DistillationObjective(
            teacher=load_model(teacher_directory),
            delta=2**round_index / 16,
            teacher_steps=2,
            teacher_rollouts=1,
            divergence="reverse_kl",
            schedule=SCHEDULES["log-linear"],
            seed=0,
        )
        return DivergenceProbe(objective, held_out, PROBE_SEED).divergence(load_model(student_directory))

    begun = [m["probe_divergence"] for m in metrics(run) if m["training_step"] == 0]
    directories = [Path(teacher), run / "round_0", run / "round_1"]
    for round_index, directory in enumerate(directories):
        assert begun[round_index] == pytest.approx(
            divergence(directory, directory, round_index), rel=1e-3, abs=1e-7
        )
    for round_index in (1, 2):
        of_the_mistake = divergence(Path(teacher), directories[round_index], round_index)
        assert begun[round_index] != pytest.approx(of_the_mistake, rel=0.1)


def test_mistake_hand_over_once_per_micro_batch(tmp_path: Path, teacher: str, data: DataConfig) -> None:
    """Micro-batches change nothing but rounding: as many updates, the same rounds and teachers."""
    for name, micro_batch_size in (("whole", 0), ("parts", 2), ("uneven", 3)):
        distill(
            output=str(tmp_path / name),
            teacher=teacher,
            rounds=RoundsConfig(base_steps=16, num_rounds=2, teacher_rollouts=2),
            data=data,
            optimizer=OPTIMIZER,
            loop=loop(micro_batch_size=micro_batch_size),
        )
    whole = metrics(tmp_path / "whole")
    for name in ("parts", "uneven"):
        parts = metrics(tmp_path / name)
        assert [(m["round_index"], m["training_step"]) for m in parts] == [
            (m["round_index"], m["training_step"]) for m in whole
        ]
        for a, b in zip(whole, parts, strict=True):
            assert b == pytest.approx(a, rel=1e-3)
        assert not (tmp_path / name / "round_2").exists()
        manifest = read_manifest(tmp_path / name / "round_1")
        assert manifest["teacher"] == weights_hash(tmp_path / name / "round_0")


def test_probe_falls(
    tmp_path: Path, teacher: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A student that starts elsewhere comes closer to the teacher's targets."""
    student = checkpoint(tmp_path / "student", tokenizer, seed=1)
    distill(
        output=str(tmp_path / "run"),
        teacher=teacher,
        student=student,
        rounds=RoundsConfig(base_steps=16, num_rounds=1),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=2),
        loop=loop(training_steps=40, validate_every=20, save_every=40, ema_decay=0.5),
    )
    probes = [m["probe_divergence"] for m in metrics(tmp_path / "run") if "probe_divergence" in m]
    assert len(probes) == 3
    assert probes[0] > probes[1] > probes[2]
    assert probes[2] < 0.7 * probes[0]


SCRIPT = """
import sys
import signal
from pathlib import Path
from tests.training.test_distill import long_run, stop_in_round_1

output, teacher, corpus = sys.argv[1:]
stop_in_round_1(Path(output), signal.SIGKILL)
long_run(Path(output), teacher, Path(corpus))
"""


def long_run(run: Path, teacher: str, corpus_file: Path, **rounds: Any) -> None:
    distill(
        output=str(run),
        teacher=teacher,
        rounds=RoundsConfig(base_steps=16, num_rounds=3, **rounds),
        data=DataConfig(corpus=Corpus(source=str(corpus_file)), context_length=16, validation_contexts=4),
        optimizer=OPTIMIZER,
        loop=loop(training_steps=16, validate_every=10, save_every=7),
    )


def stop_in_round_1(run: Path, number: signal.Signals) -> None:
    """Send this process a signal when it writes on after training step 8 of round 1 of `run`."""
    record = run / "metrics.jsonl"
    sent = False

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal sent
        if sent or event != "open" or arguments[0] != str(record) or "a" not in str(arguments[1]):
            return
        if record.exists() and '"round_index": 1, "training_step": 8,' in record.read_text():
            sent = True
            os.kill(os.getpid(), number)

    sys.addaudithook(on_event)


def assert_was_stopped_in_round_1(run: Path) -> None:
    place = saved_place(run)
    assert place is not None
    assert place.round_index == 1
    assert place.training_step == 7
    assert place.teacher == weights_hash(run / "round_0")


def assert_same_runs(one: Path, other: Path) -> None:
    for r in range(3):
        assert weights_hash(one / f"round_{r}") == weights_hash(other / f"round_{r}")
        assert read_manifest(one / f"round_{r}") == read_manifest(other / f"round_{r}")
    assert metrics(one) == metrics(other)


def test_kill_in_the_middle_of_a_round(tmp_path: Path, teacher: str, corpus_file: Path) -> None:
    """The resumed run has the weights, the metrics and the teachers of one that was never killed."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), teacher, str(corpus_file)]
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert_was_stopped_in_round_1(tmp_path / "killed")
    for name in ("whole", "killed"):
        long_run(tmp_path / name, teacher, corpus_file)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def test_interrupt_in_the_middle_of_a_round(tmp_path: Path, teacher: str, corpus_file: Path) -> None:
    """Ctrl-C, with an optimizer and raw weights that go on from round to round."""
    settings = {"optimizer_state": "keep", "next_teacher": "raw"}
    long_run(tmp_path / "whole", teacher, corpus_file, **settings)
    stop_in_round_1(tmp_path / "stopped", signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with pytest.raises(KeyboardInterrupt):
        long_run(tmp_path / "stopped", teacher, corpus_file, **settings)
    signal.signal(signal.SIGINT, before)
    assert_was_stopped_in_round_1(tmp_path / "stopped")
    long_run(tmp_path / "stopped", teacher, corpus_file, **settings)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_mistake_a_resumed_run_reports_its_beginning_twice(
    tmp_path: Path, teacher: str, data: DataConfig
) -> None:
    """A kill before the first saved state leaves records, and everything is made again."""
    run = tmp_path / "run"
    run.mkdir()
    stale = {"round_index": 0, "training_step": 0, "probe_divergence": 99.0}
    (run / "metrics.jsonl").write_text(json.dumps(stale) + "\n")
    distill(
        output=str(run),
        teacher=teacher,
        rounds=RoundsConfig(base_steps=4, num_rounds=1),
        data=data,
        optimizer=OPTIMIZER,
        loop=loop(training_steps=1),
    )
    assert [m["probe_divergence"] for m in metrics(run) if m["training_step"] == 0] != [99.0]
    assert len([m for m in metrics(run) if m["training_step"] == 0]) == 1


def test_a_finished_run_is_not_run_again(tmp_path: Path, teacher: str, data: DataConfig) -> None:
    settings = {"rounds": RoundsConfig(base_steps=4, num_rounds=1), "data": data, "loop": loop()}
    run = tmp_path / "run"
    first = distill(output=str(run), teacher=teacher, **settings)
    before = (weights_hash(first), metrics(run))
    assert distill(output=str(run), teacher=teacher, **settings) == first
    assert (weights_hash(first), metrics(run)) == before


def test_a_changed_teacher_is_refused(
    tmp_path: Path, teacher: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The hash of the round's teacher is in the saved state."""
    settings = {"rounds": RoundsConfig(base_steps=4, num_rounds=1), "data": data, "loop": loop()}
    distill(output=str(tmp_path / "run"), teacher=teacher, **settings)
    checkpoint(Path(teacher), tokenizer, seed=5)
    with pytest.raises(ValueError, match="has changed since round 0 began with it; put it back"):
        distill(output=str(tmp_path / "run"), teacher=teacher, **settings)


def test_student_may_start_from_other_weights(
    tmp_path: Path, teacher: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    student = checkpoint(tmp_path / "student", tokenizer, seed=1)
    directory = distill(
        output=str(tmp_path / "run"),
        teacher=teacher,
        student=student,
        rounds=RoundsConfig(base_steps=4, num_rounds=1, next_teacher="raw"),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-9, warmup=0),
        loop=loop(training_steps=1),
    )
    trained, start = load_model(directory), load_model(student)
    for a, b in zip(trained.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert read_manifest(directory)["teacher"] == weights_hash(teacher)


@pytest.mark.parametrize("shape", [{"hidden_size": 32}, {"num_hidden_layers": 3}])
def test_student_of_another_shape_is_refused(
    tmp_path: Path, teacher: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, shape: dict[str, int]
) -> None:
    student = checkpoint(tmp_path / "student", tokenizer, **shape)
    with pytest.raises(ValueError, match=r"has another shape than its teacher .* choose one of the same"):
        distill(output=str(tmp_path / "run"), teacher=teacher, student=student, data=data, loop=loop())
    assert not (tmp_path / "run").exists()


def test_autoregressive_teacher_is_refused(
    tmp_path: Path, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    teacher = checkpoint(tmp_path / "ar", tokenizer, kind="autoregressive")
    with pytest.raises(ValueError, match="is an autoregressive model; distillation needs a denoiser"):
        distill(output=str(tmp_path / "run"), teacher=teacher, data=data, loop=loop())
