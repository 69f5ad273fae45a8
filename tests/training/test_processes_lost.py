"""Runs of two processes that are killed, interrupted or started with settings that differ."""

import json
import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.cli.main import INTERRUPTION, main
from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.training.run_state import saved_place
from tests.training.two_processes import command, exit_codes, start


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_directory: Path,
    corpus_file: Path,
) -> list[str]:
    """The command of a run of many short training steps, but for its output."""
    config = DenoiserConfig(
        vocab_size=280, max_position_embeddings=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, condition_size=8,
    )  # fmt: skip
    model = Denoiser(config)
    model.backbone.initialize(seeds.generator(0))
    beginning = tmp_path_factory.mktemp("beginning") / "model"
    save_checkpoint(beginning, model, tokenizer, {"kind": "diffusion"})
    return [
        "train", "--tokenizer", str(tokenizer_directory), "--init_from", str(beginning),
        "--data.corpus.source", str(corpus_file), "--data.context_length", "16",
        "--data.validation_contexts", "4", "--loop.training_steps", "200", "--loop.batch_size", "4",
        "--loop.log_every", "1", "--loop.validate_every", "200", "--loop.save_every", "20",
        "--loop.progress", "false",
    ]  # fmt: skip


def losses(directory: Path) -> dict[int, float]:
    """The loss of each training step, of each recorded line but one that is not finished."""
    lines = (directory / "metrics.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    found = {row["training_step"]: row["loss"] for row in rows if "loss" in row}
    assert len(found) == sum("loss" in row for row in rows)
    return found


def wait_for_records(directory: Path, count: int, processes: list[ForkServerProcess]) -> None:
    metrics, deadline = directory / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert all(process.is_alive() for process in processes) and time.monotonic() < deadline
        time.sleep(0.001)


def said(directory: Path, rank: int) -> list[str]:
    """The lines of fewstep itself in what a process said, and any of a traceback."""
    lines = (directory / f"said.{rank}").read_text().splitlines()
    return [line for line in lines if line.startswith(("fewstep", "Traceback"))]


def test_a_killed_process_ends_the_run_and_loses_nothing_saved(settings: list[str], tmp_path: Path) -> None:
    """kill -9 of the second; then one process repeats the command. Its training steps are the same."""
    run = tmp_path / "run"
    repeated = [*settings, "--output", str(run)]
    processes = start(command, tmp_path, repeated)
    wait_for_records(run, 30, processes)
    processes[1].kill()
    killed_at = time.monotonic()
    assert exit_codes(processes) == [2, -signal.SIGKILL]
    assert time.monotonic() - killed_at < 60
    (line,) = said(tmp_path, 0)
    assert line == (
        "fewstep: another process of the run has ended or no longer answers; what was saved remains; "
        "the same command continues"
    )
    before, place = losses(run), saved_place(run)
    assert place is not None and len(before) - 20 <= place.training_step <= len(before)
    assert place.training_step >= 20
    assert main(repeated) == 0
    after = losses(run)
    assert sorted(after) == list(range(1, 201))
    assert [after[step] for step in range(1, place.training_step + 1)] == [
        before[step] for step in range(1, place.training_step + 1)
    ]
    again = {step: loss for step, loss in before.items() if step > place.training_step}
    assert [after[step] for step in again] == pytest.approx([*again.values()], rel=1e-3)


def test_interrupted_processes_end_with_one_line(settings: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start(command, tmp_path, [*settings, "--output", str(run)])
    wait_for_records(run, 25, processes)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
    assert exit_codes(processes) == [130, 130]
    assert (said(tmp_path, 0), said(tmp_path, 1)) == ([f"fewstep: {INTERRUPTION}"], [])
    place = saved_place(run)
    assert place is not None and place.training_step >= 20
    assert not (run / "state.unfinished").exists()


def test_settings_that_differ_are_named_and_nothing_is_written(settings: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = [*settings, "--output", str(run)]
    processes = start(command, tmp_path, one, [*one, "--optimizer.learning_rate", "0.5"])
    assert exit_codes(processes) == [2, 2]
    (line,) = said(tmp_path, 0)
    assert line == (
        "fewstep: optimizer.learning_rate is 0.0003 in process 0 and 0.5 in process 1; "
        "start all processes with the same settings"
    )
    assert not run.exists()
