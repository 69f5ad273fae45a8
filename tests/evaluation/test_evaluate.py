"""An evaluation end to end: its rows are what each metric gives alone, and what is finished is kept."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.evaluation.conditional_perplexity import conditional_perplexity
from fewstep.evaluation.evaluate import Evaluation, evaluate
from fewstep.evaluation.held_out import Continuations, HeldOut
from fewstep.evaluation.judge import load_judge
from fewstep.evaluation.likelihood import text_likelihood
from fewstep.evaluation.measurements import METRICS
from fewstep.evaluation.samples import Samples
from fewstep.sampling.text_model import load
from tests.evaluation.tiny_models import save_tiny_models

METRICS_HERE = ("gen_ppl", "entropy", "distinct_2", "seconds_per_sample", "conditional_ppl", "val_ppl")


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, corpus_file: Path
) -> dict[str, Any]:
    paths = save_tiny_models(tmp_path_factory.mktemp("models"), tokenizer)
    return {
        "models": (paths["denoiser"], paths["autoregressive"]),
        "metrics": METRICS_HERE,
        "steps": (2, 5),
        "temperatures": (0.5, 1.0),
        "samples": Samples(num_samples=4, batch_size=2, length=20, seed=1),
        "continuations": Continuations(num_prompts=3, per_prompt=2, prompt_length=8, length=6),
        "held_out": HeldOut(
            corpus=Corpus(source=str(corpus_file)), fraction=0.2, num_contexts=5, context_length=16
        ),
        "judge": paths["judge"],
    }


def run(settings: dict[str, Any], output: Path, **changed: Any) -> Evaluation:
    result = evaluate(**settings | {"output": str(output)} | changed)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    output = tmp_path_factory.mktemp("evaluation")
    return run(settings, output), output


def files(output: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(output)): (path.stat().st_mtime_ns, path.read_bytes())
        for folder in ("samples", "results")
        for path in sorted((output / folder).rglob("*.json"))
    }


def test_rows_are_in_the_order_of_the_settings(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    rows = finished[0].rows
    denoiser, autoregressive = settings["models"]
    keys = ("model", "steps", "temperature", "cache_refresh", "top_p")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        *((denoiser, steps, temperature, 1, 1.0) for steps in (2, 5) for temperature in (0.5, 1.0)),
        *((autoregressive, None, temperature, None, 1.0) for temperature in (0.5, 1.0)),
    ]
    for row in rows:
        assert set(METRICS_HERE) == set(row) & set(METRICS)
    assert finished[0].failures == []


def test_metrics_are_what_each_gives_alone(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    judge = load_judge(settings["judge"])
    for row in finished[0].rows:
        model = load(row["model"])
        ways = {"num_steps": row["steps"], "temperature": row["temperature"]}
        made = [model.generate(2, length=20, seed=seed, **ways) for seed in (2, 3)]
        nats, num_tokens = 0.0, 0
        for ids in (ids for one in made for ids in one.tokens):  # the judge has the model's vocabulary
            with torch.no_grad():
                inputs = torch.tensor([[judge.prefix_token_id, *ids]])
                log_p = judge.model(input_ids=inputs).logits[0].log_softmax(-1)
            nats -= sum(log_p[i, token].item() for i, token in enumerate(ids))
            num_tokens += len(ids)
        assert row["gen_ppl"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-4)
        tokens = [ids for one in made for ids in one.tokens]
        counts = [[count / 20 for count in Counter(ids).values()] for ids in tokens]
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for one in counts for p in one) / 4)
        pairs = [pair for ids in tokens for pair in pairwise(ids)]
        assert row["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
        assert row["seconds_per_sample"] > 0


def test_a_metric_of_the_model_is_measured_once_and_repeated(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    result, output = finished
    for name in settings["models"]:
        model = load(name)
        contexts = settings["held_out"].contexts(model.tokenizer)
        assert contexts.shape == (5, 16)
        expected = text_likelihood(model, contexts, seed=1).perplexity
        assert {row["val_ppl"] for row in result.rows if row["model"] == name} == {expected}
    assert len(list((output / "results").glob("validation-*"))) == 2


def test_continuations_are_judged_after_their_prompts(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    row = finished[0].rows[1]
    model = load(row["model"])
    passages = settings["held_out"].passages(model.tokenizer, settings["continuations"])
    prompts = [passage.prompt for passage in passages for _ in range(2)]
    made = model.generate(prompt=prompts, length=14, num_steps=2, seed=1)  # one batch of all
    texts = [model.decode(ids[8:]) for ids in made.tokens]
    expected = conditional_perplexity(prompts, texts, load_judge(settings["judge"])).perplexity
    assert row["conditional_ppl"] == pytest.approx(expected, rel=1e-5)


def test_a_second_evaluation_writes_nothing_and_says_the_same(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    result, output = finished
    before = files(output)
    assert run(settings, output).rows == result.rows
    assert files(output) == before


def test_more_steps_and_metrics_are_added_to_what_is_there(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    result, output = finished
    before = files(output)
    more = run(settings, output, metrics=("entropy", "bits_per_byte"), steps=(2, 3), temperatures=(1.0,))
    assert [row["steps"] for row in more.rows] == [2, 3, None]
    assert more.rows[0]["entropy"] == result.rows[1]["entropy"]
    after = files(output)
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[1].rsplit("-", 1)[0] for name in after if name not in before}
    assert new == {"denoiser-3-steps", "judged-denoiser", "diversity-denoiser"}


def test_the_frontier_compares_at_the_first_models_entropy(
    finished: tuple[Evaluation, Path], settings: dict[str, Any]
) -> None:
    result, output = finished
    reference = result.rows[3]  # 5 steps at temperature 1
    assert result.frontier["entropy"] == reference["entropy"]
    assert result.frontier["curves"][1]["gen_ppl"] == pytest.approx(reference["gen_ppl"])
    far = run(settings, output, matched_entropy=99.0)
    assert [curve["gen_ppl"] for curve in far.frontier["curves"]] == [None] * 3
    saved = json.loads((output / "rows.json").read_text())
    assert saved == {"rows": far.rows, "frontier": far.frontier}


def test_what_fails_leaves_what_is_finished(settings: dict[str, Any], tmp_path: Path) -> None:
    held_out = HeldOut(corpus=settings["held_out"].corpus, fraction=0.2, context_length=30)
    changed = {"metrics": ("val_ppl", "entropy"), "steps": (2,), "temperatures": (1.0,), "held_out": held_out}
    result = run(settings, tmp_path, **changed)
    assert [("entropy" in row, "val_ppl" in row) for row in result.rows] == [(True, False)] * 2
    assert len(result.failures) == 2
    assert "val_ppl of " in result.failures[0] and "the model reads 24 at once" in result.failures[0]
    assert "the model reads 24 at once" in (tmp_path / "report.html").read_text()
    mended = run(settings, tmp_path, **changed | {"held_out": settings["held_out"]})
    assert mended.failures == []
    assert all("val_ppl" in row for row in mended.rows)


def test_texts_that_a_model_cannot_write_fail_for_it_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    samples = Samples(num_samples=2, batch_size=2, length=25)
    result = run(settings, tmp_path, metrics=("entropy", "val_ppl"), steps=(2,), samples=samples)
    assert all("length is 25" in failure for failure in result.failures)
    assert all("val_ppl" in row and "entropy" not in row for row in result.rows)


def test_weights_that_are_damaged_leave_other_models_their_rows(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    broken = Path(save_tiny_models(tmp_path / "models", tokenizer)["denoiser"])
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    save_file({**weights, name: weights[name] * math.nan}, broken / "model.safetensors", {"format": "pt"})
    models = (str(broken), settings["models"][1])
    result = run(settings, tmp_path / "out", models=models, metrics=("entropy", "val_ppl"), steps=(2,))
    assert len(result.failures) == 3  # texts at each temperature, and val_ppl
    assert all("logits are not finite" in failure for failure in result.failures)
    assert [("entropy" in row, "val_ppl" in row) for row in result.rows] == [(False, False)] * 2 + [
        (True, True)
    ] * 2


def test_two_processes_give_the_numbers_of_one(
    finished: tuple[Evaluation, Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    held_out = settings["held_out"]
    flags = [
        *("--steps", "2", "5", "--temperatures", "0.5", "1", "--metrics", *METRICS_HERE),
        *("--samples.num_samples", "4", "--samples.batch_size", "2", "--samples.length", "20"),
        *("--samples.seed", "1", "--continuations.num_prompts", "3", "--continuations.per_prompt", "2"),
        *("--continuations.prompt_length", "8", "--continuations.length", "6"),
        *("--held_out.corpus.source", held_out.corpus.source, "--held_out.fraction", "0.2"),
        *("--held_out.num_contexts", "5", "--held_out.context_length", "16"),
        *("--judge", settings["judge"], "--output", str(tmp_path)),
    ]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, "--module", "fewstep", "eval", *settings["models"], *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1  # the first process alone speaks
    rows = json.loads(lines[0])["rows"]
    for row, alone in zip(rows, finished[0].rows, strict=True):
        assert row.keys() == alone.keys()
        for key in row.keys() - {"seconds_per_sample"}:
            number = isinstance(alone[key], float)
            assert row[key] == (pytest.approx(alone[key], rel=1e-5) if number else alone[key])
