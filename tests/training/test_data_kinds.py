"""Whole runs on other data than packed text, prompts with responses and streams; and data that do not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.pairs import PairLoader
from fewstep.data.streaming import StreamLoader
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.rounds import RoundsConfig
from fewstep.evaluation.likelihood import likelihood
from fewstep.models.checkpoint import load_model, read_manifest, save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import load
from fewstep.training.distill import distill
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import DataConfig
from fewstep.training.train import train

LOOP = LoopConfig(
    training_steps=4, batch_size=3, log_every=1, validate_every=2, save_every=2, progress=False, ema_decay=0.5
)
SHAPE: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "condition_size": 8,
}
ANSWER = " a free people"


@pytest.fixture
def start(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """Returns a checkpoint of very small random weights, of either kind."""

    def saved(kind: str) -> str:
        torch.manual_seed(0)
        network = Denoiser(DenoiserConfig(**SHAPE))
        if kind == "autoregressive":
            network = AutoregressiveLM(AutoregressiveConfig(**SHAPE))
        save_checkpoint(tmp_path / f"start_{kind}", network, tokenizer, {"kind": kind})
        return str(tmp_path / f"start_{kind}")

    return saved


@pytest.fixture
def pairs(tmp_path: Path) -> DataConfig:
    """Questions of random letters, of unequal lengths, all with one answer."""
    letters = np.random.default_rng(0).permutation(list("abcdefghijklmnopqrstuvwxyz" * 8)).tolist()
    rows = [{"q": "".join(letters[3 * i : 3 * i + 1 + i % 7]), "a": ANSWER} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus(source=str(tmp_path / "pairs.jsonl"), prompt_field="q", response_field="a")
    return DataConfig(corpus=corpus, context_length=16, validation_fraction=0.25, validation_contexts=4)


@pytest.fixture
def stream(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    corpus = Corpus(source=str(corpus_file), streaming=True)
    return DataConfig(corpus=corpus, context_length=16, held_out_documents=5, validation_contexts=4)


def settings(kind: str, data: DataConfig, init_from: str, **loop: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "tokenizer": init_from,
        "init_from": init_from,
        "data": data,
        "optimizer": OptimizerConfig(learning_rate=5e-3, warmup=2),
        "loop": replace(LOOP, **loop),
    }


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_answers_are_learned_and_prompts_are_not(
    kind: str, pairs: DataConfig, start: Callable[[str], str], tmp_path: Path
) -> None:
    """The model answers as it was taught; what prompts are made of has no part in the loss it reports."""
    init_from = start(kind)
    result = train(
        output=str(tmp_path / "run"),
        **settings(kind, pairs, init_from, training_steps=80, validate_every=80, save_every=80),
    )
    manifest = read_manifest(result)
    assert manifest["validation_nats_per_token"] < {"diffusion": 3.0, "autoregressive": 1.0}[kind]
    model = load(result)
    held_out = pairs.held_out(pairs.tokenize(model.tokenizer, learn_fill=kind == "diffusion"))
    expected = likelihood(load_model(result), held_out, schedule=SCHEDULES["log-linear"], seed=1)
    assert manifest["validation_nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-4)
    if kind == "autoregressive":
        short, long = model.generate(prompt=["qz", "xbwv"], temperature=0.0).texts
        assert short.startswith(f"qz{ANSWER}") and long.startswith(f"xbwv{ANSWER}")


def test_students_are_distilled_on_answers(
    pairs: DataConfig, start: Callable[[str], str], tmp_path: Path
) -> None:
    rounds = RoundsConfig(base_steps=8, num_rounds=2)
    result = distill(
        output=str(tmp_path / "run"), teacher=start("diffusion"), rounds=rounds, data=pairs, loop=LOOP
    )
    assert read_manifest(result)["num_steps"] == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] >= 0 for row in rows if "loss" in row] == [True] * 8


@pytest.mark.parametrize("what", ["pairs", "stream"])
def test_a_stopped_run_goes_on_bit_identically(
    what: str,
    request: pytest.FixtureRequest,
    start: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data: DataConfig = request.getfixturevalue(what)
    loader = {"pairs": PairLoader, "stream": StreamLoader}[what]
    init_from = start("diffusion")
    whole = train(output=str(tmp_path / "whole"), **settings("diffusion", data, init_from))
    batch = loader.batch

    def interrupted(self: Any, training_step: int) -> torch.Tensor:
        if training_step == 3:
            raise KeyboardInterrupt
        return batch(self, training_step)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(output=str(tmp_path / "stopped"), **settings("diffusion", data, init_from))
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "empty cache"))
    more_processes = replace(data, num_proc=2)
    stopped = train(output=str(tmp_path / "stopped"), **settings("diffusion", more_processes, init_from))
    one, other = (load_file(path / "model.safetensors") for path in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_texts_longer_than_the_teachers_context_are_refused(
    tmp_path: Path, start: Callable[[str], str], corpus_file: Path
) -> None:
    data = DataConfig(corpus=Corpus(source=str(corpus_file)), context_length=17)
    with pytest.raises(ValueError, match=r"context_length is 17 and the context of .* 16; lower it"):
        distill(output=str(tmp_path / "run"), teacher=start("diffusion"), data=data, loop=LOOP)
    assert not (tmp_path / "run").exists()
