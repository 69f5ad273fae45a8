"""`fewstep eval` as a command: positional models, a table, one last JSON line, and one line of refusal."""

import inspect
import json
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from fewstep.cli.eval import evaluate_models
from fewstep.cli.main import COMMANDS, summary
from fewstep.cli.settings import parse
from fewstep.evaluation.evaluate import evaluate
from fewstep.evaluation.samples import Samples
from tests.evaluation.tiny_models import save_tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return save_tiny_models(tmp_path_factory.mktemp("models"), tokenizer)


def run(*arguments: str) -> None:
    settings = parse(evaluate_models, "fewstep eval", list(arguments))
    assert settings is not None
    evaluate_models(**settings)


def test_the_flags_are_the_arguments_of_the_function() -> None:
    flags = inspect.signature(evaluate_models).parameters
    arguments = inspect.signature(evaluate).parameters
    assert list(flags) == [name for name in arguments if name != "progress"]
    assert (evaluate.__doc__ or "").startswith(summary(COMMANDS["eval"]))
    settings = parse(evaluate_models, "fewstep eval", ["a", "b", "--steps", "8", "16", "--samples.seed", "3"])
    assert settings is not None
    assert (settings["models"], settings["steps"]) == (("a", "b"), (8, 16))
    assert settings["samples"] == Samples(num_samples=64, batch_size=8, seed=3)


def test_it_prints_a_table_and_last_a_line_of_json(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        models["denoiser"], models["autoregressive"], "--steps", "2", "4", "--metrics", "entropy", "gen_ppl",
        "--samples.num_samples", "2", "--samples.batch_size", "2", "--samples.length", "12",
        "--judge", models["judge"], "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    run(*command)
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert [row["steps"] for row in result["rows"]] == [2, 4, None]
    assert set(result["rows"][0]) == {
        "model", "steps", "temperature", "cache_refresh", "top_p", "entropy", "entropy_standard_error",
        "gen_ppl", "gen_ppl_standard_error",
    }  # fmt: skip
    assert lines[0].split() == ["model", "steps", "gen_ppl", "entropy"]
    for line, row in zip(lines[1:4], result["rows"], strict=True):
        assert f"{row['gen_ppl']:.1f} ±" in line and f"{row['entropy']:.3f} ±" in line
    assert lines[4] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").exists()
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["steps"] == [2, 4]
    run("--config", str(tmp_path / "out" / "config.yaml"))
    assert capsys.readouterr().out.splitlines()[-1] == lines[-1]


def test_what_failed_is_refused_after_what_was_found(
    models: dict[str, str], corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"val_ppl of .*the model reads 24 at once"):
        run(
            models["denoiser"], "--metrics", "val_ppl", "entropy", "--steps", "2", "--samples.length", "12",
            "--samples.num_samples", "2", "--samples.batch_size", "2", "--output", str(tmp_path / "out"),
            "--held_out.corpus.source", str(corpus_file), "--held_out.context_length", "30",
        )  # fmt: skip
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [("entropy" in row, "val_ppl" in row) for row in rows] == [(True, False)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["denoiser", "--metrics", "entropi"], "no metric 'entropi'; did you mean 'entropy'?"),
        (["denoiser", "denoiser"], "name at least one, and none twice"),
        (["nothing-here"], "cannot load a model from 'nothing-here'"),
        (["denoiser", "--metrics", "lambada_ppl", "--lambada", "none.jsonl"], "none.jsonl"),
        (["denoiser", "--samples.num_samples", "0"], "num_samples is 0"),
        (["denoiser", "--output", "pyproject.toml"], "output 'pyproject.toml' is a file; name a directory"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    models: dict[str, str], flags: list[str], message: str, tmp_path: Path
) -> None:
    words = [models.get(flag, flag) for flag in flags]
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        run(*([] if "--output" in words else ["--output", str(tmp_path / "out")]), "--models", *words)
    assert not (tmp_path / "out").exists()
