"""`train` as a whole, on a corpus of a few sentences: both kinds, resuming, and what it refuses."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fewstep.data.corpora import Corpus
from fewstep.data.loader import TokenLoader, validation_batch
from fewstep.data.tokenizer import load_tokenizer, train_tokenizer
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.evaluation.likelihood import likelihood
from fewstep.models.checkpoint import load_model, read_manifest, save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.train import DataConfig, train
from tests.training.tiny_run import state_tensors

LOOP = LoopConfig(
    training_steps=4, batch_size=2, log_every=1, validate_every=2, save_every=2, progress=False, ema_decay=0.5
)
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "condition_size": 8}


@pytest.fixture
def settings(corpus_file: Path, tokenizer_directory: Path, start: Path) -> dict[str, Any]:
    """Settings of a short run that starts from the weights of a very small denoiser."""
    return {
        "tokenizer": str(tokenizer_directory),
        "init_from": str(start / "denoiser"),
        "data": DataConfig(
            corpus=Corpus(source=str(corpus_file)),
            validation_fraction=0.1,
            validation_contexts=5,
            context_length=16,
        ),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup=2),
        "loop": LOOP,
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    """Checkpoints to start from, `denoiser` and `autoregressive`, so that runs are small and quick."""
    directory = tmp_path_factory.mktemp("start")
    tokenizer = load_tokenizer(tokenizer_directory)
    config: dict[str, Any] = {"vocab_size": 280, "max_position_embeddings": 16, **SHAPE}
    torch.manual_seed(0)
    save_checkpoint(directory / "denoiser", Denoiser(DenoiserConfig(**config)), tokenizer, {})
    model = AutoregressiveLM(AutoregressiveConfig(**config))
    save_checkpoint(directory / "autoregressive", model, tokenizer, {})
    return directory


def records(directory: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "model_class"), [("diffusion", Denoiser), ("autoregressive", AutoregressiveLM)]
)
def test_training_from_random_weights(
    kind: Any, model_class: type, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The named shape, fresh weights; the checkpoint holds their average and its true perplexity."""
    run = tmp_path / "run"
    loop = replace(LOOP, training_steps=2)
    result = train(output=str(run), kind=kind, shape="tiny", **{**settings, "init_from": None, "loop": loop})
    assert result == run / "model"
    model = load_model(result)
    assert type(model) is model_class
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.max_length) == (256, 6, 16)
    assert (model.vocab_size, len(load_tokenizer(result))) == (280, 281)
    state = state_tensors(run)
    average, last = (
        {name: state[f"{part}.{name}"] for name in weights(result)} for part in ("average", "weights")
    )
    assert same(weights(result), average)
    assert not same(average, last)
    manifest = read_manifest(result)
    assert manifest["kind"] == kind and manifest["tokens_seen"] == 2 * 2 * 16
    assert manifest["settings"]["data"]["corpus"]["source"] == settings["data"].corpus.source
    validated = [row for row in records(run) if "validation_perplexity" in row]
    assert [row["training_step"] for row in validated] == [2]
    for name in ("validation_perplexity", "validation_perplexity_standard_error"):
        assert validated[0][name] == manifest[name]
    relative_error = manifest["validation_perplexity_standard_error"] / manifest["validation_perplexity"]
    uniform = math.log(280)  # nats a token of the fresh model, which two updates hardly change
    assert abs(manifest["validation_nats_per_token"] - uniform) < 0.1 + 4 * relative_error


def test_validation_is_the_likelihood_of_held_out_text(settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(output=str(tmp_path / "run"), **settings)
    data = settings["data"]
    held_out = data.tokenize(load_tokenizer(settings["tokenizer"])).validation
    tokens = validation_batch(held_out, context_length=16, max_contexts=5)
    expected = likelihood(load_model(result), tokens, schedule=SCHEDULES["log-linear"], seed=1)
    validation = read_manifest(result)
    assert validation["validation_nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-5)
    error = validation["validation_perplexity_standard_error"]
    assert error == pytest.approx(expected.perplexity_standard_error, rel=1e-4)


def test_same_settings_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    one, again = (train(output=str(tmp_path / name), **settings) for name in ("one", "again"))
    assert same(weights(one), weights(again))
    other_seed = {**settings, "loop": replace(LOOP, seed=1)}
    assert not same(weights(one), weights(train(output=str(tmp_path / "other"), **other_seed)))


@pytest.mark.parametrize("stop_before", [1, 3])
def test_stopped_run_goes_on_bit_identically(
    stop_before: int, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(output=str(tmp_path / "whole"), **settings)
    batch = TokenLoader.batch

    def interrupted(self: TokenLoader, training_step: int) -> torch.Tensor:
        if training_step == stop_before:
            raise KeyboardInterrupt
        return batch(self, training_step)

    monkeypatch.setattr(TokenLoader, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(output=str(tmp_path / "stopped"), **settings)
    monkeypatch.undo()
    stopped = train(output=str(tmp_path / "stopped"), **settings)
    assert same(weights(whole), weights(stopped))
    assert records(tmp_path / "whole") == records(tmp_path / "stopped")
    assert read_manifest(whole) == read_manifest(stopped)


def test_finished_run_is_not_trained_again(settings: dict[str, Any], tmp_path: Path) -> None:
    first = weights(train(output=str(tmp_path / "run"), **settings))
    recorded = records(tmp_path / "run")
    assert same(weights(train(output=str(tmp_path / "run"), **settings)), first)
    assert records(tmp_path / "run") == recorded


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": OptimizerConfig(learning_rate=2e-3, warmup=2)},
        {"loop": replace(LOOP, seed=9)},
        {"loop": replace(LOOP, batch_size=4)},
        {"loop": replace(LOOP, ema_decay=0.6)},
        {"loop": replace(LOOP, precision="bfloat16")},
        {"schedule": "cosine"},
        {"kind": "autoregressive", "init_from": None},
    ],
)
def test_changed_settings_are_refused(
    change: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    train(output=str(tmp_path / "run"), **{**settings, "loop": replace(LOOP, training_steps=1)})
    if "loop" in change:
        change = {"loop": replace(change["loop"], training_steps=1)}
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    settings = {**settings, "loop": replace(LOOP, training_steps=1), **change}
    assert "other settings" in refusal(lambda: train(output=str(tmp_path / "run"), **settings))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_another_tokenizer_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    train(output=str(tmp_path / "run"), **settings)
    train_tokenizer(["other words " * 9], vocab_size=280).save_pretrained(tmp_path / "other")
    settings["tokenizer"] = str(tmp_path / "other")
    assert "other settings" in refusal(lambda: train(output=str(tmp_path / "run"), **settings))


def test_what_is_reported_may_change(settings: dict[str, Any], tmp_path: Path) -> None:
    train(output=str(tmp_path / "run"), **settings)
    loop = replace(LOOP, log_every=3, save_every=1, validate_every=9, micro_batch_size=1)
    train(output=str(tmp_path / "run"), **{**settings, "loop": loop})


def test_denoiser_starts_from_an_autoregressive_model(
    settings: dict[str, Any], start: Path, tmp_path: Path
) -> None:
    settings["init_from"] = str(start / "autoregressive")
    settings["optimizer"] = OptimizerConfig(learning_rate=0.0)
    result = train(output=str(tmp_path / "run"), **settings)
    assert type(load_model(result)) is Denoiser
    for name, tensor in weights(start / "autoregressive").items():
        torch.testing.assert_close(weights(result)[name], tensor, rtol=0, atol=1e-7)
    settings["optimizer"] = OptimizerConfig(learning_rate=1e-2, warmup=0)
    moved = train(output=str(tmp_path / "moved"), **settings)
    mask_row = [
        weights(of)["backbone.vocab_embed.embedding"][280] for of in (moved, start / "autoregressive")
    ]
    assert (mask_row[0] - mask_row[1]).abs().max() > 1e-3


def test_autoregressive_model_cannot_start_from_a_denoiser(settings: dict[str, Any], tmp_path: Path) -> None:
    assert "is a denoiser" in refusal(
        lambda: train(output=str(tmp_path / "run"), kind="autoregressive", **settings)
    )


def test_start_of_another_vocabulary_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    small = train_tokenizer(["words"], vocab_size=260)
    config = DenoiserConfig(vocab_size=len(small) - 1, **SHAPE)
    save_checkpoint(tmp_path / "other", Denoiser(config), small, {})
    settings["init_from"] = str(tmp_path / "other")
    message = refusal(lambda: train(output=str(tmp_path / "run"), **settings))
    assert f"trained with {len(small) - 1} tokens and the tokenizer has 280" in message


def test_context_longer_than_that_of_the_start_is_saved_as_such(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["data"] = replace(settings["data"], context_length=32)
    assert load_model(train(output=str(tmp_path / "run"), **settings)).max_length == 32


def test_diverging_run_keeps_its_saved_state(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["optimizer"] = OptimizerConfig(learning_rate=1e30, warmup=0)
    settings["loop"] = replace(LOOP, training_steps=50, save_every=50)
    message = refusal(lambda: train(output=str(tmp_path / "run"), **settings))
    assert message.startswith("the loss is") and str(tmp_path / "run") in message
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"context_length": 0}]
)
def test_data_settings_that_cannot_be_met_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    assert name in refusal(lambda: DataConfig(**wrong))


def test_missing_inputs_are_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    missing = str(tmp_path / "nowhere")
    data = replace(settings["data"], corpus=Corpus(source=f"{missing}.txt"))
    for change in ({"tokenizer": missing}, {"init_from": missing}, {"data": data}):
        assert missing in refusal(lambda change=change: train(output=str(run), **{**settings, **change}))
    assert not run.exists()
