"""Conversion between layouts: what goes there and back has the same bytes, and failures leave nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from fewstep.cli.convert import convert
from fewstep.models.adapters.conversion import read_any
from fewstep.models.checkpoint import load_model, read_manifest, save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import load
from tests.models.adapters.published_reference import (
    PREFIXES,
    SHAPES,
    mdlm_config,
    random_tensors,
    sdtt_config,
    write_checkpoint,
)

SHAPE = SHAPES[2]  # 280 tokens, as many as the tokenizer of the tests
CONFIGS: dict[str, Any] = {"mdlm": mdlm_config, "sdtt": sdtt_config}
OWN_SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "condition_size": 4,
}


def published(directory: Path, layout: str, prefix: str = "backbone.", **options: Any) -> Path:
    return write_checkpoint(directory, random_tensors(SHAPE, **options), CONFIGS[layout](SHAPE), prefix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["mdlm", "sdtt"])
def test_there_and_back_gives_the_same_bytes(
    layout: Any, prefix: str, dtype: torch.dtype, tmp_path: Path, tokenizer_directory: Path
) -> None:
    source = published(tmp_path / "source", layout, prefix, dtype=dtype)
    options = {"tokenizer": str(tokenizer_directory)}
    own = convert(str(source), str(tmp_path / "own"), **options)
    back = convert(str(own), str(tmp_path / "back"), layout=layout)
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((back / "config.json").read_text()) == CONFIGS[layout](SHAPE)
    tensors = load_file(own / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert len(tensors["backbone.output_layer.linear.weight"]) == SHAPE.tokens
    assert len(tensors["backbone.vocab_embed.embedding"]) == SHAPE.tokens + 1
    for one, other in zip(load_model(source).parameters(), load_model(own).parameters(), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_converted_model_is_loaded_and_says_where_it_is_from(
    tmp_path: Path, tokenizer_directory: Path
) -> None:
    source = published(tmp_path / "source", "mdlm")
    own = convert(str(source), str(tmp_path / "own"), tokenizer=str(tokenizer_directory))
    manifest = read_manifest(own)
    assert (manifest["converted_from"], manifest["schedule"]) == (str(source), "log-linear")
    assert f"| converted from | {source} |" in (own / "README.md").read_text()
    here = load(own, device="cpu").generate(num_steps=4, seed=1)
    there = load(source, tokenizer=tokenizer_directory, device="cpu").generate(num_steps=4, seed=1)
    assert here.tokens == there.tokens
    assert len(here.tokens[0]) == SHAPE.length


def test_the_other_published_layout_has_the_same_tensors(tmp_path: Path, tokenizer_directory: Path) -> None:
    source = published(tmp_path / "source", "sdtt", "backbone.backbone.")
    other = convert(str(source), str(tmp_path / "mdlm"), layout="mdlm", tokenizer=str(tokenizer_directory))
    assert json.loads((other / "config.json").read_text()).items() >= mdlm_config(SHAPE).items()
    for name, tensor in random_tensors(SHAPE).items():
        assert torch.equal(load_file(other / "model.safetensors")[f"backbone.{name}"], tensor)


@pytest.mark.parametrize("layout", ["mdlm", "sdtt"])
def test_a_model_trained_here_is_written_with_zeros_for_the_mask(
    layout: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = Denoiser(DenoiserConfig(**OWN_SHAPE))
    save_checkpoint(tmp_path / "own", model, tokenizer, {})
    written = convert(str(tmp_path / "own"), str(tmp_path / "theirs"), layout=layout)
    tensors = load_file(written / "model.safetensors")
    assert not tensors["backbone.output_layer.linear.weight"][-1].any()
    assert torch.equal(tensors["backbone.rotary_emb.inv_freq"], torch.tensor([1.0, 0.1, 0.01, 0.001]))
    loaded = load_model(written)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.max_length == 8


def test_a_shipped_model_is_converted(tmp_path: Path) -> None:
    written = convert("sotu-student", str(tmp_path / "student"), layout="sdtt")
    assert json.loads((written / "config.json").read_text())["model"]["n_blocks"] == 6
    for one, other in zip(
        load_model("sotu-student").parameters(), load_model(written).parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_averaged_weights_of_a_lightning_file_are_converted(
    tmp_path: Path, tokenizer_directory: Path
) -> None:
    tensors = {f"backbone.{name}": tensor for name, tensor in random_tensors(SHAPE).items()}
    averages = [tensor + 1 for name, tensor in tensors.items() if not name.endswith("inv_freq")]
    config = sdtt_config(SHAPE)
    run = {"state_dict": tensors, "ema": {"shadow_params": averages}, "hyper_parameters": {"config": config}}
    torch.save(run, tmp_path / "run.ckpt")
    arguments = (str(tmp_path / "run.ckpt"), str(tmp_path / "own"))
    own = convert(*arguments, weights="ema", tokenizer=str(tokenizer_directory))
    embedding = load_file(own / "model.safetensors")["backbone.vocab_embed.embedding"]
    assert torch.equal(embedding, tensors["backbone.vocab_embed.embedding"] + 1)
    assert read_manifest(own)["weights_are"] == "ema"


def test_tensors_stay_in_the_file_until_they_are_written(tmp_path: Path) -> None:
    """Neither reading nor cutting off the mask's row makes a copy: the pages are those of the file."""
    model = read_any(published(tmp_path, "mdlm"))
    cut = model.state()
    for name, tensor in model.tensors.items():
        if name != "rotary_emb.inv_freq":
            assert cut[f"backbone.{name}"].data_ptr() == tensor.data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    (first,) = {line.split()[0] for line in maps if line.endswith(str(tmp_path / "model.safetensors"))}
    start, end = (int(address, 16) for address in first.split("-"))
    assert all(start <= tensor.data_ptr() < end for tensor in model.tensors.values())


def refusal(tmp_path: Path, model: Path, **options: Any) -> str:
    """Return how a conversion is refused, once it is sure that it left nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        convert(str(model), **{"output": str(tmp_path / "output"), **options})
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


def test_wrong_input_is_refused_and_leaves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tokenizer_directory: Path
) -> None:
    fitting = {"tokenizer": str(tokenizer_directory)}
    source = published(tmp_path / "source", "mdlm")
    assert "no such file" in refusal(tmp_path, tmp_path / "nowhere")
    assert "there already" in refusal(tmp_path, source, output=str(source), **fitting)
    assert "there is no tokenizer there" in refusal(tmp_path, source)
    small = write_checkpoint(tmp_path / "small", random_tensors(SHAPES[0]), mdlm_config(SHAPES[0]))
    assert "280 tokens" in refusal(tmp_path, small, **fitting)
    (tmp_path / "damaged").mkdir()
    content = (source / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(content[:-4])
    assert "cannot read" in refusal(tmp_path, tmp_path / "damaged", **fitting)
    causal = AutoregressiveLM(AutoregressiveConfig(**OWN_SHAPE))
    save_checkpoint(tmp_path / "causal", causal, tokenizer, {})
    assert "fewstep-autoregressive" in refusal(tmp_path, tmp_path / "causal")
