"""From the published layouts of MDLM and SDTT to fewstep's and back, without a copy in memory.

What fewstep's own files have no place for is kept beside them, in `published.safetensors`: the rows of
the mask in the output layer, the rotary frequencies, and, as its metadata, the prefix of the names and
the original config.json. adaLN and the layers of its time condition are parameters here as they are
there. So a checkpoint comes back with the same bytes in every tensor. One that never was published, or
was trained further, gets a row of zeros for the mask, which no sampler of theirs reads.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep.models.adapters.lightning import FREQUENCIES
from fewstep.models.adapters.published import (
    CONFIG,
    HEAD,
    OURS,
    Averaging,
    PublishedModel,
    denoiser_config,
    model_settings,
    read_config,
    read_published,
    recognises,
)
from fewstep.models.adapters.weight_files import read_safetensors
from fewstep.models.attention import ROTARY_BASE
from fewstep.models.checkpoint import WEIGHTS, replacing, write_manifest
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser

Layout = Literal["fewstep", "mdlm", "sdtt"]
KEPT = "published.safetensors"


def read_any(place: Path, weights: Averaging | None = None) -> PublishedModel:
    """Return a denoiser of any of the three layouts, its tensors memory-mapped, as it is published.

    Args:
        place: its directory, or its weight file.
        weights: of a Lightning checkpoint, the weights as trained ("raw") or their average ("ema").

    Raises:
        ValueError: if it is another model, or damaged.
    """
    config = read_config(place)
    if recognises(config):
        return read_published(place, config, weights)
    if config.get("model_type") != DenoiserConfig.model_type:
        raise ValueError(
            f"{place} is a {config.get('model_type')}; only denoisers of MDLM's network are converted"
        )
    if weights is not None:
        raise ValueError(f"weights is {weights!r}, and only a Lightning checkpoint holds two kinds")
    tensors, _ = read_safetensors([place / WEIGHTS])
    tensors = {name.removeprefix(OURS): tensor for name, tensor in tensors.items()}
    shape = DenoiserConfig.from_pretrained(place)
    if (place / KEPT).exists():
        kept, metadata = read_safetensors([place / KEPT])
        of_file = json.loads(metadata["of_file"])
        prefix, settings = metadata["prefix"], json.loads(metadata["config"])
    else:
        kept, prefix, of_file = invented(shape, tensors[HEAD[0]].dtype), OURS, {"format": "pt"}
        settings = invented_config(shape, "mdlm")
    return PublishedModel(prefix, tensors | kept | whole_head(place / WEIGHTS, kept), settings, of_file)


def whole_head(path: Path, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output layer with its row of the mask.

    The file is mapped once more, so that the pages that the copy has read go when this returns.
    """
    tensors, _ = read_safetensors([path])
    return {name: torch.cat([tensors[OURS + name], kept[name]]) for name in HEAD}


def invented(shape: DenoiserConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what a published checkpoint has besides our tensors: zeros for the mask, and frequencies."""
    head_width = shape.hidden_size // shape.num_attention_heads
    rows = (torch.zeros(1, shape.hidden_size, dtype=dtype), torch.zeros(1, dtype=dtype))
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_width, 2) / head_width)
    return dict(zip(HEAD, rows, strict=True)) | {FREQUENCIES: frequencies}


def invented_config(shape: DenoiserConfig, layout: Layout) -> dict[str, Any]:
    """Return the settings that a network's shape gives, under the names of a published layout."""
    if layout == "mdlm":
        return {
            "model_type": "mdlm",
            "architectures": ["MDLM"],
            "vocab_size": shape.vocab_size + 1,
            "model_length": shape.max_position_embeddings,
            "hidden_dim": shape.hidden_size,
            "cond_dim": shape.condition_size,
            "n_blocks": shape.num_hidden_layers,
            "n_heads": shape.num_attention_heads,
            "dropout": 0.0,
            "time_conditioning": False,
        }
    model = {
        "hidden_size": shape.hidden_size,
        "cond_dim": shape.condition_size,
        "length": shape.max_position_embeddings,
        "n_blocks": shape.num_hidden_layers,
        "n_heads": shape.num_attention_heads,
        "dropout": 0.0,
    }
    return {"model": model, "time_conditioning": False}


def in_layout(published: PublishedModel, layout: Layout) -> PublishedModel:
    """Return a model as one of the published layouts has it; unchanged if it came from that."""
    came_from = "mdlm" if model_settings(published.config) is published.config else "sdtt"
    if layout == came_from:
        return published
    settings = invented_config(denoiser_config(published), layout)
    return replace(published, prefix=OURS, config=settings, metadata={"format": "pt"})


def write_published(
    directory: Path, published: PublishedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Write a model under the names that it has in `published`, and its tokenizer if it has one."""
    with replacing(directory) as unfinished:
        tensors = {published.prefix + name: tensor for name, tensor in published.tensors.items()}
        save_file(tensors, unfinished / WEIGHTS, metadata=published.metadata or None)
        (unfinished / CONFIG).write_text(json.dumps(published.config, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)


def write_own(
    directory: Path,
    published: PublishedModel,
    tokenizer: PreTrainedTokenizerBase,
    manifest: dict[str, Any],
) -> None:
    """Write a published model as a checkpoint of fewstep, in the precision that it has."""
    config = denoiser_config(published)
    config.architectures = [Denoiser.__name__]
    config.dtype = published.tensors[HEAD[0]].dtype
    kept = {
        "prefix": published.prefix,
        "config": json.dumps(published.config),
        "of_file": json.dumps(published.metadata),
    }
    with replacing(directory) as unfinished:
        config.save_pretrained(unfinished)
        save_file(published.state(), unfinished / WEIGHTS, metadata={"format": "pt"})
        save_file(published.dropped(), unfinished / KEPT, metadata=kept)
        tokenizer.save_pretrained(unfinished)
        write_manifest(unfinished, directory.name, manifest)
