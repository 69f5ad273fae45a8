"""Published MDLM and SDTT checkpoints: the same probabilities, any shape, and what does not fit is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config

from fewstep.models.checkpoint import load_model, weights_hash
from fewstep.models.language_model import Denoiser
from tests.models.adapters.published_reference import (
    PREFIXES,
    SHAPES,
    Shape,
    log_probabilities,
    mdlm_config,
    random_tensors,
    sdtt_config,
    write_checkpoint,
)

SHAPE = SHAPES[0]


def agree(model: Any, tensors: dict[str, Tensor], shape: Shape) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, shape.tokens + 1, (2, shape.length), generator=generator)
    tokens[0, ::2] = shape.tokens  # masks
    with torch.no_grad():
        logits = model(tokens).logits
    assert logits.shape[-1] == shape.tokens
    expected = torch.stack([log_probabilities(tensors, row, shape.heads) for row in tokens])
    difference = (logits.double().log_softmax(-1) - expected).abs().max()
    assert difference < 1e-5
    assert expected.std() > 0.5  # or agreement would say little


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("config", [mdlm_config, sdtt_config])
def test_probabilities_are_those_of_the_published_network(
    shape: Shape, prefix: str, config: Callable[[Shape], dict[str, Any]], tmp_path: Path
) -> None:
    tensors = random_tensors(shape)
    write_checkpoint(tmp_path, tensors, config(shape), prefix)
    model = load_model(tmp_path)
    assert type(model) is Denoiser
    assert (model.vocab_size, model.mask_token_id, model.max_length) == (
        shape.tokens,
        shape.tokens,
        shape.length,
    )
    agree(model, tensors, shape)
    agree(model.folded(), tensors, shape)


def test_a_lone_file_is_described_by_its_metadata(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE)
    named = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    metadata = {"n_blocks": "2", "hidden_size": "24", "cond_dim": "5", "length": "7", "n_heads": "3"}
    save_file(named, tmp_path / "weights.safetensors", metadata={**metadata, "vocab_size": "12"})
    agree(load_model(tmp_path / "weights.safetensors"), tensors, SHAPE)
    agree(load_model(tmp_path), tensors, SHAPE)  # the directory, without a config.json


def test_heads_are_counted_if_nothing_states_them(tmp_path: Path) -> None:
    config = mdlm_config(SHAPE)
    del config["n_heads"]
    tensors = random_tensors(SHAPE)
    agree(load_model(write_checkpoint(tmp_path, tensors, config)), tensors, SHAPE)


def test_a_file_in_pieces_is_put_together(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE)
    write_checkpoint(tmp_path, tensors, mdlm_config(SHAPE))
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for part, names in enumerate((list(whole)[:5], list(whole)[5:])):
        path = tmp_path / f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: whole[name] for name in names}, path)
    agree(load_model(tmp_path), tensors, SHAPE)


def test_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE, dtype=torch.bfloat16)
    model = load_model(write_checkpoint(tmp_path, tensors, mdlm_config(SHAPE)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    agree(model, tensors | {"rotary_emb.inv_freq": random_tensors(SHAPE)["rotary_emb.inv_freq"]}, SHAPE)


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        load_model(directory)
    return str(caught.value)


def changed(tmp_path: Path, change: Callable[[dict[str, Tensor]], object], **settings: Any) -> str:
    """Return how a checkpoint is refused after `change` to its tensors and with other `settings`."""
    tensors = random_tensors(SHAPE)
    change(tensors)
    return refusal(write_checkpoint(tmp_path, tensors, mdlm_config(SHAPE) | settings))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["blocks.1.mlp.2.bias"]
        tensors["blocks.0.stray"] = torch.zeros(2)
        tensors["blocks.0.norm1.weight"] = torch.zeros(25)

    message = changed(tmp_path, change)
    assert "missing: blocks.1.mlp.2.bias" in message
    assert "surplus: blocks.0.stray" in message
    assert "misshapen: blocks.0.norm1.weight [25] for [24]" in message


def test_a_tensor_outside_the_prefix_is_surplus(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_tensors(SHAPE), mdlm_config(SHAPE))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"noise.gamma": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "surplus: noise.gamma" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"n_blocks": 3}, "missing: blocks.2.norm1.weight"),
        ({"n_heads": 2}, "misshapen: rotary_emb.inv_freq [4] for [6]"),
        ({"vocab_size": 13}, "output_layer.linear.weight [12, 24] for [13, 24]"),
        ({"time_conditioning": True}, "time_conditioning"),
        ({"parameterization": "ar"}, "parameterization is 'ar'"),
        ({"model_length": "${data.length}"}, "model_length as '${data.length}'"),
        ({"n_heads": 24}, "even width"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], part: str) -> None:
    assert part in changed(tmp_path, lambda tensors: None, **settings)


def test_unknown_length_is_refused(tmp_path: Path) -> None:
    assert "length" in refusal(write_checkpoint(tmp_path, random_tensors(SHAPE), None))


def test_other_rotary_frequencies_are_refused(tmp_path: Path) -> None:
    assert "rotary base" in changed(tmp_path, lambda tensors: tensors["rotary_emb.inv_freq"].mul_(1.01))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"transformer.wte.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    assert "transformer.wte.weight" in refusal(tmp_path)


def test_a_causal_model_is_refused(tmp_path: Path) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    assert "causal" in refusal(tmp_path)


def test_weights_are_of_one_kind_in_a_safetensors_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_tensors(SHAPE), mdlm_config(SHAPE))
    with pytest.raises(ValueError, match="one set of weights"):
        load_model(tmp_path, weights="ema")


def test_hash_is_of_the_published_file(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", random_tensors(SHAPE, seed=1), mdlm_config(SHAPE))
    other = write_checkpoint(tmp_path / "other", random_tensors(SHAPE, seed=2), mdlm_config(SHAPE))
    again = write_checkpoint(tmp_path / "again", random_tensors(SHAPE, seed=1), mdlm_config(SHAPE))
    assert weights_hash(one) == weights_hash(again) != weights_hash(other)
