"""Distilling with adapters: the teacher stays what it is, adapters alone learn, rounds merge, runs resume."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import fewstep
from fewstep import seeds
from fewstep.data.corpora import Corpus
from fewstep.diffusion.schedule import LogLinear
from fewstep.distillation.objective import DistillationObjective
from fewstep.distillation.rounds import RoundsConfig
from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.checkpoint import load_model, read_manifest, save_checkpoint, weights_hash
from fewstep.models.language_model import Denoiser
from fewstep.models.lora import LoraConfig, WithoutAdapters, adapters, attach, merged, restart
from fewstep.training.distill import distill
from fewstep.training.loop import LoopConfig, TrainingLoop
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig, trained
from fewstep.training.run import DataConfig
from tests.models.adapters.networks import network

RANK_2 = LoraConfig(rank=2)
LOOP = LoopConfig(
    training_steps=3, batch_size=2, log_every=1, validate_every=3, save_every=1, progress=False, ema_decay=0.5
)
ROUNDS = RoundsConfig(base_steps=8, num_rounds=2)
ADAMW = OptimizerConfig(learning_rate=1e-2, warmup=0)
TOKENS = torch.arange(36).view(3, 12) * 5 % 29


def adapted(kind: str, own: Denoiser) -> tuple[Any, Any]:
    """Return a denoiser and the same with adapters, whose A and B are random."""
    plain = own if kind == "own" else HuggingFaceDenoiser(network(kind), mask_token_id=3, vocab_size=29)
    other = copy.deepcopy(plain)
    attach(other, RANK_2)
    restart(other, seeds.generator(0))
    for index, layer in enumerate(adapters(other).values()):
        layer.lora_B["default"].weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(index))
    return plain, other


def rows_of(model: Any) -> Tensor:
    return model.hidden(TOKENS, TOKENS < 20)


KINDS = pytest.mark.parametrize("kind", ["own", "bert", "qwen2"])


@KINDS
@torch.no_grad()
def test_network_is_its_teacher_with_adapters_off_and_at_the_beginning(
    kind: str, tiny_denoiser: Denoiser
) -> None:
    plain, other = adapted(kind, tiny_denoiser)
    assert (rows_of(other) - rows_of(plain)).abs().max() > 0.1
    torch.testing.assert_close(rows_of(WithoutAdapters(other)), rows_of(plain), rtol=1e-5, atol=1e-5)
    assert (rows_of(other) - rows_of(plain)).abs().max() > 0.1, "and they are on again"
    restart(other, seeds.generator(1))
    torch.testing.assert_close(rows_of(other), rows_of(plain), atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_merged_weights_are_those_of_the_whole(kind: str, tiny_denoiser: Denoiser) -> None:
    """W + alpha / rank * B A, under the names that a network without adapters has."""
    plain, other = adapted(kind, tiny_denoiser)
    weights = merged(other)
    changed = {
        name for name, parameter in plain.named_parameters() if not torch.equal(weights[name], parameter)
    }
    assert changed == {f"{name}.weight" for name in adapters(other)}
    name, layer = next(iter(adapters(other).items()))
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 16 / 2
    torch.testing.assert_close(weights[f"{name}.weight"], plain.state_dict()[f"{name}.weight"] + change)
    for name, parameter in plain.named_parameters():
        parameter.copy_(weights[name])
    torch.testing.assert_close(rows_of(other), rows_of(plain), atol=1e-4, rtol=1e-4)


@KINDS
def test_updates_leave_the_teacher_alone(kind: str, tiny_denoiser: Denoiser) -> None:
    _, other = adapted(kind, tiny_denoiser)
    teacher = WithoutAdapters(other)
    objective = DistillationObjective(
        teacher=teacher, delta=0.25, teacher_steps=2, teacher_rollouts=1, divergence="reverse_kl",
        schedule=LogLinear(), seed=0,
    )  # fmt: skip
    before, student_before = rows_of(teacher), rows_of(other).detach()
    logits_before = teacher.head(before).detach()
    optimizer = ADAMW.build(other)
    for step in range(3):
        objective.loss_sum(other, objective.prepare(TOKENS, step)).backward()
        with_gradient = {name for name, p in other.named_parameters() if p.grad is not None}
        assert with_gradient == set(trained(other)) and all("lora_" in name for name in with_gradient)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(rows_of(teacher), before)
    assert torch.equal(teacher.head(rows_of(teacher)), logits_before)
    assert (rows_of(other) - student_before).abs().max() > 1e-3


def test_number_of_numbers(tiny_denoiser: Denoiser) -> None:
    """Two blocks of width 16: q, k, v 16 + 48, output 16 + 16, MLP 16 + 64 twice, each times the rank."""
    _, other = adapted("own", tiny_denoiser)
    count = sum(parameter.numel() for parameter in trained(other).values())
    assert count == 2 * 2 * (64 + 32 + 80 + 80) == 1024
    assert sum(p.numel() for p in other.parameters()) == 13509 + count, "one copy of the weights"
    assert sum(tensor.numel() for tensor in ExponentialMovingAverage(other, 0.5).average.values()) == count
    assert sum(p.numel() for group in ADAMW.build(other).param_groups for p in group["params"]) == count


@pytest.fixture
def data(corpus_file: Path) -> DataConfig:
    return DataConfig(corpus=Corpus(source=str(corpus_file)), context_length=16, validation_contexts=2)


def start(directory: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    model = HuggingFaceDenoiser(network("llama", vocab_size=288), mask_token_id=280, vocab_size=280)
    save_checkpoint(directory, model, tokenizer, {})
    return str(directory)


def test_rounds_merge_and_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "rounds": ROUNDS,
        "data": data,
        "optimizer": ADAMW,
        "loop": LOOP,
        "lora": RANK_2,
    }
    settings["teacher"] = start(tmp_path / "teacher", tokenizer)
    whole = distill(output=str(tmp_path / "whole"), **settings)
    first = load_model(tmp_path / "whole" / "round_0").state_dict()
    second, teacher = load_model(whole).state_dict(), load_model(settings["teacher"]).state_dict()
    assert second.keys() == first.keys() == teacher.keys()
    layer, table = "network.model.layers.0.mlp.up_proj.weight", "network.model.embed_tokens.weight"
    for one, other in ((teacher, first), (first, second)):
        assert torch.linalg.matrix_rank(other[layer] - one[layer], rtol=1e-3) == 2
        assert torch.equal(other[table], one[table])
    assert read_manifest(whole)["teacher"] == weights_hash(tmp_path / "whole" / "round_0")
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [record["training_step"] for record in records if "probe_divergence" in record] == [0, 3, 0, 3]

    saves, original = 0, TrainingLoop.save

    def save(loop: TrainingLoop, place: Any) -> None:
        nonlocal saves
        original(loop, place)
        saves += 1
        if saves in (2, 5):  # in the middle of each round
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "save", save)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(output=str(tmp_path / "parts"), **settings)
    resumed = load_model(distill(output=str(tmp_path / "parts"), **settings)).state_dict()
    assert [name for name in second if not torch.equal(second[name], resumed[name])] == []
    assert fewstep.load(whole).generate(num_steps=2).num_forwards == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "elsewhere"}, "student is elsewhere"),
        ({"rounds": replace(ROUNDS, optimizer_state="keep")}, "rounds.optimizer_state is keep"),
        ({"loop": replace(LOOP, sharding="full")}, "sharding"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(output=str(tmp_path / "run"), teacher="sotu-teacher", lora=RANK_2, **change)


def test_rank_and_scale_are_checked() -> None:
    with pytest.raises(ValueError, match=r"lora.rank is -1"):
        LoraConfig(rank=-1)
    with pytest.raises(ValueError, match=r"lora.alpha 0; rank must"):
        LoraConfig(rank=1, alpha=0)
