"""The command line as a user meets it: real processes, exit codes, and one line for each refusal."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import fewstep
from fewstep.cli.main import COMMANDS, INTERRUPTION, main, one_line, summary
from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser

FEWSTEP = [sys.executable, "-m", "fewstep"]
TRAINING_STEPS = 300
PATIENCE = 300.0
"""Seconds that a process may take on a busy machine."""


@pytest.fixture
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what `main` sets in its process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logger = logging.getLogger("fewstep")
    before = logger.handlers, logger.propagate, logger.level
    packages = {name: logging.getLogger(name).level for name in ("accelerate", "httpx", "torch")}
    environment = dict(os.environ)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logger.handlers, logger.propagate, logger.level = before
    for name, level in packages.items():
        logging.getLogger(name).setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def training_flags(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_directory: Path,
    corpus_file: Path,
) -> list[str]:
    """Flags of a training that makes hundreds of updates in seconds."""
    config = DenoiserConfig(
        vocab_size=len(tokenizer) - 1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = Denoiser(config)
    start = tmp_path_factory.mktemp("start") / "model"
    save_checkpoint(start, model, tokenizer, {})
    return [
        *("--tokenizer", str(tokenizer_directory), "--init_from", str(start)),
        *("--data.corpus.source", str(corpus_file), "--data.context_length", "16"),
        *("--data.validation_contexts", "2", "--loop.batch_size", "2"),
        *("--loop.training_steps", str(TRAINING_STEPS), "--loop.save_every", "20", "--loop.log_every", "1"),
    ]


def run_fewstep(*arguments: str, shell_limit: str = "") -> subprocess.CompletedProcess[str]:
    command = [*FEWSTEP, *arguments]
    if shell_limit:
        command = ["bash", "-c", f'{shell_limit}; exec "$@"', "bash", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def refusal(process: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a refused command, without its beginning "fewstep: "."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("fewstep: ")
    return line.removeprefix("fewstep: ")


def test_help_lists_the_commands_within_a_second() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = run_fewstep("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert process.returncode == 0
    assert process.stderr == ""
    words = " ".join(process.stdout.split())
    for name, place in COMMANDS.items():
        assert f"{name} {' '.join(summary(place).split())}" in words
    assert min(seconds) < 1.0  # of processor time: other work on the machine does not count


def test_help_imports_no_command() -> None:
    code = "import sys; from fewstep.cli.main import main; main(['--help'])\n"
    code += "assert not {'torch', 'transformers', 'jsonargparse', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=PATIENCE)


def test_summaries_are_the_docstrings_of_the_functions() -> None:
    assert (fewstep.train.__doc__ or "").startswith(summary(COMMANDS["train"]))
    assert (fewstep.distill.__doc__ or "").startswith(summary(COMMANDS["distill"]))
    with pytest.raises(LookupError, match="nothing"):
        summary("fewstep.training.train:nothing")


def test_the_console_script_is_the_main_function() -> None:
    process = subprocess.run([*FEWSTEP, "--version"], capture_output=True, text=True, timeout=PATIENCE)
    assert (process.returncode, process.stdout) == (0, f"fewstep {fewstep.__version__}\n")


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'? See fewstep --help"),
        (
            ["train", "--loop.batch_sise", "2"],
            "unknown flag --loop.batch_sise; did you mean --loop.batch_size?",
        ),
        (["train", "--config", "none.yaml"], "No such file or directory: none.yaml"),
        (
            ["train", "--tokenizer", "t"],
            "the following arguments are required: output; see fewstep train --help",
        ),
        (
            ["train", "--output", "o", "--tokenizer", "t", "--loop.batch_size", "0"],
            "loop.batch_size is 0; it must be at least 1",
        ),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"fewstep: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_file_is_one_line_and_makes_no_directory(
    training_flags: list[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.jsonl")
    output = tmp_path / "run"
    process = run_fewstep("train", "--output", str(output), *training_flags, "--data.corpus.source", missing)
    assert refusal(process) == f"no text, JSONL or Parquet file at {missing!r}; name one that exists"
    assert not output.exists()


def test_a_full_disk_is_one_line(training_flags: list[str], tmp_path: Path) -> None:
    # No file may grow beyond 48 KiB, which is less than the weights and more than all that is read.
    output = tmp_path / "run"
    process = run_fewstep("train", "--output", str(output), *training_flags, shell_limit="ulimit -f 48")
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("fewstep: ")
    assert "File too large" in process.stderr.splitlines()[-1]
    assert not (output / "state").exists()


def test_an_interrupted_training_goes_on_with_the_same_command(
    training_flags: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = ["train", "--output", str(output), *training_flags]
    repeated = ["train", "--config", str(output / "config.yaml")]
    place, kept = 0, []
    for arguments, number in ((command, signal.SIGTERM), (repeated, signal.SIGINT)):
        stderr = interrupt(arguments, number, output, beyond=place)
        assert stderr.splitlines()[-1] == f"fewstep: {INTERRUPTION}"
        assert "Traceback" not in stderr
        lines = records(output)
        assert lines[: len(kept)] == kept  # a run that began again has other speeds
        place = saved_training_step(output)
        kept = [line for line in lines if json.loads(line)["training_step"] <= place]
    assert place < TRAINING_STEPS
    process = run_fewstep(*command)
    assert process.returncode == 0, process.stderr
    lines = records(output)
    assert lines[: len(kept)] == kept
    losses = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["training_step"] for record in losses] == list(range(1, TRAINING_STEPS + 1))
    assert (output / "model" / "model.safetensors").exists()


def interrupt(arguments: list[str], number: signal.Signals, output: Path, *, beyond: int) -> str:
    """Start a training, send it signal `number` once it saved a place beyond `beyond`; return its stderr."""
    process = subprocess.Popen([*FEWSTEP, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while saved_training_step(output) <= beyond and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, stderr
    return stderr


def saved_training_step(output: Path) -> int:
    try:
        return json.loads((output / "state" / "place.json").read_text())["training_step"]
    except FileNotFoundError:  # not yet saved, or being replaced at this moment
        return 0


def records(output: Path) -> list[str]:
    return (output / "metrics.jsonl").read_text().splitlines()


def test_a_closed_pipe_ends_quietly() -> None:
    command = f'"{sys.executable}" -m fewstep --help | true; exit "${{PIPESTATUS[0]}}"'
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert process.stderr == ""


def test_errors_of_the_system_say_what_and_where() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "weights")
    assert one_line(full) == ("No space left on device: weights; make room, then the same command continues")
    assert one_line(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert one_line(OSError("no such model\nIf this is private, log in")) == "no such model"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.usefixtures("process_state")
def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "train", "fewstep.training.train:nothing")
    with pytest.raises(AttributeError, match="nothing"):
        main(["train"])
