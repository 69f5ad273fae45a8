"""Checkpoints of transformers models: loaded as they are published, saved, and loaded again."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import fewstep
from fewstep.data.tokenizer import load_tokenizer
from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.checkpoint import load_model, save_checkpoint
from tests.models.adapters.networks import (
    KINDS,
    LAST,
    MASK,
    SHAPE,
    checkpoint,
    network,
    own_logits,
    word_tokenizer,
)

ORIGINAL = torch.arange(40)
ORIGINAL[[MASK, LAST]] = ORIGINAL[[LAST, MASK]]
TEXT = "w5 w9 w37 w12 w37 w6"


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the config.json of a checkpoint."""
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def loaded(directory: Path) -> HuggingFaceDenoiser:
    model = load_model(directory)
    assert isinstance(model, HuggingFaceDenoiser)
    return model


def logits_of_text(directory: Path) -> Tensor:
    """Return the logits of the checkpoint's denoiser for `TEXT` and two masks, in its own tokens."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*ids, tokenizer.mask_token_id, tokenizer.mask_token_id]])
    model = loaded(directory)
    return model.head(model.hidden(tokens))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_text_has_the_logits_that_its_authors_see(kind: str, tmp_path: Path) -> None:
    """Through the authors' tokenizer and network, and through ours, before and after saving."""
    model = checkpoint(tmp_path / "theirs", kind)
    raw = word_tokenizer(mask_token="[MASK]")
    ids = raw(TEXT, add_special_tokens=False)["input_ids"]
    assert 37 in ids and raw.mask_token_id == 3
    own = own_logits(model, torch.tensor([[*ids, 3, 3]]))[..., ORIGINAL[:LAST]]
    torch.testing.assert_close(logits_of_text(tmp_path / "theirs"), own, atol=1e-5, rtol=0)
    save_checkpoint(
        tmp_path / "ours",
        loaded(tmp_path / "theirs"),
        load_tokenizer(tmp_path / "theirs"),
        {"kind": "diffusion"},
    )
    assert torch.equal(logits_of_text(tmp_path / "ours"), logits_of_text(tmp_path / "theirs"))


@torch.no_grad()
def test_what_is_saved_is_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", "bert")
    adapted = loaded(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", adapted, load_tokenizer(tmp_path / "theirs"), {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("[MASK]", LAST)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    tokens = torch.tensor([[7, LAST, 9, LAST]])
    own = adapted.head(adapted.hidden(tokens))
    torch.testing.assert_close(model(tokens).logits[..., :LAST], own, atol=1e-6, rtol=0)


def test_other_weights_are_saved_in_place_of_the_models(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", "bert")
    adapted = loaded(tmp_path / "theirs")
    halves = {name: parameter.detach() / 2 for name, parameter in adapted.named_parameters()}
    save_checkpoint(tmp_path / "ours", adapted, load_tokenizer(tmp_path / "theirs"), {}, state_dict=halves)
    weights = dict(loaded(tmp_path / "ours").named_parameters())
    assert weights.keys() == halves.keys()
    assert all(torch.equal(weights[name], halves[name]) for name in halves)


def test_samples_come_out(tmp_path: Path) -> None:
    checkpoint(tmp_path, "modernbert")
    model = fewstep.load(tmp_path)
    generation = model.generate(2, prompt="w7 w8", length=12, num_steps=4)
    assert all(text.startswith("w7 w8") for text in generation.texts)
    assert all(0 <= token < LAST for tokens in generation.tokens for token in tokens)
    assert generation.num_forwards == 4
    assert generation.tokens == model.generate(2, prompt="w7 w8", length=12, num_steps=4).tokens
    with pytest.raises(ValueError, match="HuggingFaceDenoiser cannot compute some positions"):
        model.generate(num_steps=4, cache_refresh=2)


def llada_logits(weights: dict[str, Tensor], tokens: Tensor, num_heads: int, theta: float) -> Tensor:
    """Return the logits (L, rows) of LLaDA (Nie et al., 2025) for one sequence, in plain code."""
    w = {name.removeprefix("model.transformer."): tensor for name, tensor in weights.items()}

    def norm(rows: Tensor, name: str) -> Tensor:
        return rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (num_heads, -1)).transpose(0, 1)

    def rotated(rows: Tensor) -> Tensor:
        half = rows.shape[-1] // 2
        angles = torch.outer(torch.arange(len(tokens)), theta ** (-torch.arange(half) / half))
        first, second = rows[..., :half], rows[..., half:]
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    stream = w["wte.weight"][tokens]
    for layer in range(2):
        b = f"blocks.{layer}"
        normed = norm(stream, f"{b}.attn_norm")
        q, k, v = (heads(normed @ w[f"{b}.{name}_proj.weight"].T) for name in "qkv")
        scores = rotated(q) @ rotated(k).transpose(1, 2) / math.sqrt(q.shape[-1])
        attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        stream = stream + attended @ w[f"{b}.attn_out.weight"].T
        normed = norm(stream, f"{b}.ff_norm")
        gate, up = (normed @ w[f"{b}.{name}_proj.weight"].T for name in ("ff", "up"))
        stream = stream + (gate * torch.sigmoid(gate) * up) @ w[f"{b}.ff_out.weight"].T
    return norm(stream, "ln_f") @ w["ff_out.weight"].T


def llada_checkpoint(directory: Path) -> dict[str, Tensor]:
    """Save random weights under LLaDA's names with its kind of config.json, and return them."""
    shapes = {"wte": (40, 16), "ff_out": (40, 16), "ln_f": (16,)}
    for layer in range(2):
        blocks = {"attn_norm": (16,), "ff_norm": (16,), "attn_out": (16, 16), "ff_out": (16, 24)}
        blocks |= {f"{name}_proj": (16, 16) for name in "qkv"} | {
            f"{name}_proj": (24, 16) for name in ("ff", "up")
        }
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in blocks.items()}
    generator = torch.Generator().manual_seed(3)
    weights = {
        f"model.transformer.{name}.weight": torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llada", "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"}, "d_model": 16,
        "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 24, "max_sequence_length": 32,
        "rope_theta": 500.0, "rms_norm_eps": 1e-5, "vocab_size": 38, "embedding_size": 40,
        "mask_token_id": MASK, "weight_tying": False, "include_qkv_bias": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    word_tokenizer(eos_token="[SEP]").save_pretrained(directory)
    return weights


@torch.no_grad()
def test_llada_as_published(tmp_path: Path) -> None:
    """Its tokenizer names no mask; its config.json does."""
    weights = llada_checkpoint(tmp_path / "llada")
    adapted, tokenizer = loaded(tmp_path / "llada"), load_tokenizer(tmp_path / "llada")
    assert tokenizer.mask_token_id == adapted.mask_token_id == LAST
    assert tokenizer.convert_ids_to_tokens(MASK) == "w37"
    tokens = torch.tensor([7, LAST, 9, 3, LAST, 30])
    own = llada_logits(weights, ORIGINAL[tokens], num_heads=2, theta=500.0)[:, ORIGINAL[:LAST]]
    torch.testing.assert_close(adapted.head(adapted.hidden(tokens[None]))[0], own, atol=1e-5, rtol=0)
    save_checkpoint(tmp_path / "ours", adapted, tokenizer, {})
    assert torch.equal(logits_of_text(tmp_path / "ours"), logits_of_text(tmp_path / "llada"))


def dream_tokenizer_files(directory: Path) -> None:
    """Write the files of a Dream tokenizer: byte pairs and three special tokens.

    Its class is that of code in its repository, which nobody runs here.
    """
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=266, initial_alphabet=alphabet, show_progress=False)
    rules.train_from_iterator(["we hold that peace is honest"] * 5, trainer)
    rules.model.save(str(directory))
    special = {str(266 + i): {"content": token, "special": True} for i, token in enumerate(DREAM_SPECIAL)}
    config = {
        "tokenizer_class": "DreamTokenizer", "eos_token": DREAM_SPECIAL[0], "mask_token": DREAM_SPECIAL[1],
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": special,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


DREAM_SPECIAL = ("<|endoftext|>", "<|mask|>", "<|im_end|>")


@torch.no_grad()
def test_dream_as_published(tmp_path: Path) -> None:
    """Qwen2's tensors and byte pairs under their own names; the model type says that logits are shifted."""
    settings = {"tie_word_embeddings": False, "vocab_size": 272}
    model = network("qwen2", **settings, rope_theta=500.0)
    model.save_pretrained(tmp_path / "dream")
    dream = {**SHAPE, **settings, "model_type": "Dream", "num_key_value_heads": 1, "rope_theta": 500.0}
    dream |= {"mask_token_id": 267, "auto_map": {"AutoModel": "modeling_dream.DreamModel"}}
    (tmp_path / "dream" / "config.json").write_text(json.dumps(dream))
    dream_tokenizer_files(tmp_path / "dream")
    adapted, tokenizer = loaded(tmp_path / "dream"), load_tokenizer(tmp_path / "dream")
    assert adapted.shifted
    assert adapted.mask_token_id == tokenizer.mask_token_id == 268
    tokens = torch.tensor([tokenizer("w7 w3<|im_end|><|mask|>w9")["input_ids"]])
    assert {267, 268} < {*tokens[0].tolist()}
    original = torch.arange(269)
    original[[267, 268]] = original[[268, 267]]
    own = own_logits(model, original[tokens])[..., original[:268]]
    torch.testing.assert_close(adapted.head(adapted.hidden(tokens)), own, atol=1e-5, rtol=0)
    save_checkpoint(tmp_path / "ours", adapted, tokenizer, {})
    assert torch.equal(logits_of_text(tmp_path / "ours"), logits_of_text(tmp_path / "dream"))


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        load_model(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_causal_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "llama")
    rewrite(tmp_path, lambda config: config.pop("is_causal"))
    assert "it is a causal llama, and a denoiser sees both sides" in refusal(tmp_path)


def damaged(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    checkpoint(directory, "llama")
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return refusal(directory)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    assert f"do not fit its config.json: {name}" in damaged(tmp_path / "missing", lambda w: w.pop(name))
    assert "model.stray" in damaged(tmp_path / "stray", lambda w: w.update({"model.stray": torch.zeros(3)}))
    assert "lm_head.weight" in damaged(
        tmp_path / "shape", lambda w: w.update({"lm_head.weight": torch.zeros(3, 16)})
    )


def test_tensors_of_berts_other_tasks_are_left_out(tmp_path: Path) -> None:
    model: PreTrainedModel = checkpoint(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "cls.seq_relationship.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert loaded(tmp_path).network.num_parameters() == model.num_parameters()


def test_tokenizer_of_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "bert")
    tokenizer = word_tokenizer(mask_token="[MASK]")
    tokenizer.add_tokens([f"new{i}" for i in range(5)])
    tokenizer.save_pretrained(tmp_path)
    assert "embeddings of 40 ids, and its mask or last token is id 42" in refusal(tmp_path)
