"""Other people's denoisers from text to few-step student: trained, distilled, evaluated, saved, sampled."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import fewstep
from fewstep.data.corpora import Corpus
from fewstep.distillation.rounds import RoundsConfig
from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.checkpoint import load_model, read_manifest, weights_hash
from fewstep.training.distill import distill
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import DataConfig
from fewstep.training.train import train
from tests.models.adapters.networks import network
from tests.training.two_processes import exit_codes
from tests.training.two_processes import start as start_processes

LOOP = LoopConfig(
    training_steps=20, batch_size=8, log_every=5, validate_every=20, save_every=20, progress=False
)
ADAMW = OptimizerConfig(learning_rate=5e-3, warmup=4)
SHARDED_KINDS = ("bert", "qwen2")
"""Blocks that take a mask, and blocks whose logits are shifted and whose head is the embedding."""


@pytest.fixture
def data(corpus_file: Path) -> DataConfig:
    return DataConfig(corpus=Corpus(source=str(corpus_file)), context_length=16, validation_contexts=4)


def start(directory: Path, kind: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Save an untrained network with the tests' tokenizer of 280 tokens, whose mask is its last id."""
    model = network(kind, vocab_size=288)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 0.1
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def numbers(run: Path, name: str) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "qwen2"])
def test_from_text_to_student(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> None:
    untrained = start(tmp_path / "start", kind, tokenizer)
    settings: dict[str, Any] = {"data": data, "optimizer": ADAMW, "loop": LOOP}
    teacher = train(output=str(tmp_path / "run"), tokenizer=untrained, init_from=untrained, **settings)
    losses = numbers(tmp_path / "run", "loss")
    assert losses[-1] < losses[0] - 0.5, "nats a token"
    assert numbers(tmp_path / "run", "validation_nats_per_token")[-1] < losses[0] - 0.5
    assert load_model(teacher).max_length == 16

    student = distill(
        output=str(tmp_path / "distilled"),
        teacher=str(teacher),
        rounds=RoundsConfig(base_steps=4, num_rounds=1),
        **{**settings, "loop": replace(LOOP, training_steps=3)},
    )
    assert read_manifest(student)["teacher"] == weights_hash(teacher)
    begun, ended = numbers(tmp_path / "distilled", "probe_divergence")
    assert begun > 0 and ended != begun

    model = fewstep.load(student)
    assert isinstance(model.network, HuggingFaceDenoiser)
    assert model.network.shifted == (kind == "qwen2")
    generation = model.generate(2, prompt="We hold", seed=1)
    assert generation.num_forwards <= model.default_steps == 2
    assert all(text.startswith("We hold") for text in generation.texts)
    assert all(0 <= token < 280 for tokens in generation.tokens for token in tokens)


def test_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> None:
    untrained = start(tmp_path / "start", "bert", tokenizer)
    short = replace(LOOP, training_steps=2, batch_size=2, save_every=1, validate_every=2)
    rounds = RoundsConfig(base_steps=8, num_rounds=2)

    def run(name: str) -> Path:
        return distill(
            output=str(tmp_path / name),
            teacher=untrained,
            rounds=rounds,
            data=data,
            optimizer=ADAMW,
            loop=short,
        )

    whole = run("whole")
    stopped = pytest.MonkeyPatch()
    saves = 0
    original = distill.__globals__["TrainingLoop"].save

    def save(loop: Any, place: Any) -> None:
        nonlocal saves
        original(loop, place)
        saves += 1
        if saves == 3:  # in the middle of the second round
            raise KeyboardInterrupt

    stopped.setattr(distill.__globals__["TrainingLoop"], "save", save)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    stopped.undo()
    resumed = run("parts")
    one, other = load_model(whole).state_dict(), load_model(resumed).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def shared_out(rank: int, root: Path, data: DataConfig, settings: dict[str, Any]) -> None:
    """Train and distil every kind in one of two processes that hold half of the weights each."""
    settings = {**settings, "loop": replace(settings["loop"], sharding="full")}
    for kind in SHARDED_KINDS:
        train_and_distil(root / kind, root / f"{kind}-start", data, settings)


def train_and_distil(directory: Path, untrained: Path, data: DataConfig, settings: dict[str, Any]) -> None:
    """Train `untrained` into `directory`/taught and distil the result into `directory`/distilled."""
    settings = {"data": data, **settings}
    teacher = train(
        output=str(directory / "taught"), tokenizer=str(untrained), init_from=str(untrained), **settings
    )
    rounds = RoundsConfig(base_steps=4, num_rounds=1)
    distill(output=str(directory / "distilled"), teacher=str(teacher), rounds=rounds, **settings)


def test_weights_shared_out_over_two_processes_train_as_whole_ones(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> None:
    loop = replace(LOOP, training_steps=3, batch_size=4, micro_batch_size=2, log_every=1, save_every=3)
    settings = {"optimizer": ADAMW, "loop": replace(loop, validate_every=3)}
    for kind in SHARDED_KINDS:
        start(tmp_path / f"{kind}-start", kind, tokenizer)
    assert exit_codes(start_processes(shared_out, tmp_path, data, settings)) == [0, 0]
    for kind in SHARDED_KINDS:
        train_and_distil(tmp_path / "alone" / kind, tmp_path / f"{kind}-start", data, settings)
        for run in ("taught", "distilled"):
            found, expected = (numbers(root / kind / run, "loss") for root in (tmp_path, tmp_path / "alone"))
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
            assert len(found) == 3


def test_context_beyond_the_positions_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> None:
    untrained = start(tmp_path / "start", "bert", tokenizer)
    with pytest.raises(ValueError, match="40 tokens is longer than the 32 positions of this BertForMaskedLM"):
        train(
            output=str(tmp_path / "run"),
            tokenizer=untrained,
            init_from=untrained,
            data=replace(data, context_length=40),
            loop=LOOP,
        )


def test_autoregressive_training_of_a_denoiser_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> None:
    untrained = start(tmp_path / "start", "bert", tokenizer)
    with pytest.raises(ValueError, match="is a denoiser; an autoregressive model cannot start from one"):
        train(
            output=str(tmp_path / "run"),
            tokenizer=untrained,
            init_from=untrained,
            kind="autoregressive",
            data=data,
            loop=LOOP,
        )
