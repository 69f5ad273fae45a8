"""`fewstep sample`: its flags, its output, its file, and the live picture."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from fewstep.cli import sample as module
from fewstep.cli.sample import MASKED, STANDING, WRITTEN, picture, sample, show, styled_runs
from fewstep.cli.settings import parse
from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import load

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "condition_size": 8,
}


@pytest.fixture
def student(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "student", Denoiser(DenoiserConfig(**SHAPE)), tokenizer, {"num_steps": 3})
    return str(tmp_path / "student")


@pytest.fixture
def autoregressive(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "ar", AutoregressiveLM(AutoregressiveConfig(**SHAPE)), tokenizer, {})
    return str(tmp_path / "ar")


def test_the_module_costs_nothing_to_import() -> None:
    code = "import sys, fewstep.cli.sample; print({'torch', 'transformers', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_one_text_is_printed_as_it_is(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    sample(model=student, prompt="We hold", seed=4)
    assert capsys.readouterr().out == load(student).generate(prompt="We hold", seed=4).texts[0] + "\n"


@pytest.mark.parametrize("kind", ["student", "autoregressive"])
def test_several_texts_are_told_apart(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    directory = request.getfixturevalue(kind)
    sample(model=directory, num_samples=3, prompt="We hold", length=12)
    texts = load(directory).generate(3, prompt="We hold", length=12).texts
    expected = "".join(f"--- text {i} of 3 ---\n{text}\n" for i, text in enumerate(texts, start=1))
    assert capsys.readouterr().out == expected


def test_output_holds_texts_and_settings(student: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    sample(model=student, num_samples=2, prompt="We hold", temperature=0.8, seed=3, output=str(path))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    generation = load(student).generate(2, prompt="We hold", temperature=0.8, seed=3)
    assert [record.pop("text") for record in records] == generation.texts
    assert [record.pop("index") for record in records] == [0, 1]
    assert records[0] == records[1]
    assert records[0] == {
        "model": student,
        "prompt": "We hold",
        "chat": False,
        "suffix": "",
        "infill": "",
        "length": None,
        "num_steps": 3,
        "sampler": "ancestral",
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1.0,
        "cache_refresh": 1,
        "block_length": None,
        "device": "auto",
        "precision": "auto",
        "int8": False,
        "compile": "none",
        "seed": 3,
        "num_forwards": generation.num_forwards,
    }


def test_an_output_in_no_directory_is_refused_before_the_work(student: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the directory of output .* does not exist; make it first"):
        sample(model=student, output=str(tmp_path / "nowhere" / "texts.jsonl"))


def test_flags_are_the_functions_arguments(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--model",
        student,
        "--infill",
        "We <mask:3> so",
        "--sampler",
        "first-hitting",
        "--num_steps",
        "2",
    ]
    settings = parse(sample, "fewstep sample", flags)
    assert settings is not None
    assert {key: settings[key] for key in ("model", "sampler", "num_steps", "top_p", "watch", "output")} == {
        "model": student,
        "sampler": "first-hitting",
        "num_steps": 2,
        "top_p": 1.0,
        "watch": False,
        "output": None,
    }
    sample(**settings)
    expected = load(student).generate(infill="We <mask:3> so", sampler="first-hitting", num_steps=2)
    assert capsys.readouterr().out == expected.texts[0] + "\n"


def test_unknown_samplers_are_refused_by_the_flag() -> None:
    with pytest.raises(ValueError, match="'analytic', 'first-hitting', 'confidence'"):
        parse(sample, "fewstep sample", ["--sampler", "ddim"])


@pytest.mark.parametrize("kind", ["student", "autoregressive"])
def test_watch_without_a_terminal_prints_the_same(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    directory = request.getfixturevalue(kind)
    outputs = []
    for watch in (False, True):
        sample(model=directory, num_samples=2, length=10, watch=watch)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kind", ["student", "autoregressive"])
def test_watch_on_a_terminal_ends_in_the_same_texts(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(module, "SHORTEST_SHOW", 0.0)
    directory = request.getfixturevalue(kind)
    sample(model=directory, num_samples=2, length=10, batch_size=1)
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    sample(model=directory, num_samples=2, length=10, watch=True)
    shown = capsys.readouterr().out
    assert shown.endswith(plain)
    assert "step 1 of" in shown
    assert "░" in shown


def test_watch_shows_one_batch(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ValueError, match="4 texts do not fit a batch_size of 3; raise it, or ask for fewer"):
        sample(model=student, num_samples=4, batch_size=3, watch=True)


def test_styles_of_tokens() -> None:
    ids = [5, 6, 280, 280, 7, 8]
    written = [False, False, False, False, True, False]
    assert list(styled_runs(ids, written, 280)) == [
        (STANDING, [5, 6]),
        (MASKED, [280, 280]),
        (WRITTEN, [7]),
        (STANDING, [8]),
    ]


def test_picture_of_every_step(student: str) -> None:
    """What is masked is shaded, what the step wrote is highlighted, and the header counts."""
    model = load(student)
    for number, snapshot in enumerate(model.stream(prompt="We hold", num_steps=4), start=1):
        text = picture(model, snapshot)
        header, body = text.plain.split("\n\n", 1)
        passes = "pass" if snapshot.num_forwards == 1 else "passes"
        assert header == f"step {number} of 4, {snapshot.num_forwards} forward {passes}"
        assert body.startswith("We hold")
        assert body.count("░") == 4 * int((snapshot.tokens == 280).sum())
        highlighted = [text.plain[span.start : span.end] for span in text.spans if span.style == WRITTEN]
        (row,), (new,) = snapshot.tokens.tolist(), snapshot.written.tolist()
        runs = [run for style, run in styled_runs(row, new, 280) if style == WRITTEN]
        assert highlighted == [piece for run in runs if (piece := model.decode(run))]


def test_show_returns_the_last_snapshot(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_SHOW", 0.0)
    model = load(student)
    settings: dict[str, Any] = {"num_samples": 2, "num_steps": 5, "seed": 8}
    screen = io.StringIO()
    last = show(model, model.stream(**settings), Console(file=screen, force_terminal=True, width=80))
    assert last.texts == model.generate(**settings).texts
    for number in range(1, 6):
        assert f"step {number} of 5" in screen.getvalue()
