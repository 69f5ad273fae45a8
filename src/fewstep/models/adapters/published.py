"""The published checkpoints of MDLM and SDTT: the names of their tensors and settings, and ours.

Both hold one network (Sahoo et al., 2024, appendix; Deschenaux and Gulcehre, 2025), whose parameters
have the names of ours behind a prefix: `backbone.`, or `backbone.backbone.` where SDTT wrapped a
model of the hub.

    theirs                        here
    PREFIX + name                 backbone.name
    PREFIX + output_layer.linear  without its last row, the logit of the mask
    PREFIX + rotary_emb.inv_freq  computed, not stored

The substitution parameterization sets the logit of the mask to minus infinity whatever the row gives,
so nothing is lost without it. What is dropped is kept beside a converted checkpoint (`conversion`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.models.adapters.lightning import FREQUENCIES, lightning_config, lightning_state
from fewstep.models.adapters.weight_files import read_pickle, read_safetensors, weight_files
from fewstep.models.attention import ROTARY_BASE
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser

Averaging = Literal["raw", "ema"]
CONFIG = "config.json"
OURS = "backbone."
EMBEDDING = "vocab_embed.embedding"
HEAD = ("output_layer.linear.weight", "output_layer.linear.bias")
SETTINGS = {
    "hidden_size": ("hidden_dim", "hidden_size"),
    "condition_size": ("cond_dim",),
    "num_hidden_layers": ("n_blocks",),
    "num_attention_heads": ("n_heads",),
    "max_position_embeddings": ("model_length", "length"),
}
"""Our name of each setting, and MDLM's and SDTT's."""
GPT2_ROWS = 50258
"""GPT-2's vocabulary and the mask: what an MDLM configuration means, which names no tokenizer."""


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint as it was published: every tensor under its name without the prefix."""

    prefix: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """The contents of config.json, or what a Lightning checkpoint or the file's metadata says."""
    metadata: dict[str, str]
    """Of the safetensors file."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors under our names: the mask's row cut off, the frequencies left out."""
        ours = {OURS + name: tensor for name, tensor in self.tensors.items() if name != FREQUENCIES}
        return ours | {OURS + name: self.tensors[name][:-1] for name in HEAD}

    def dropped(self) -> dict[str, Tensor]:
        """Return what `state` leaves out, under names without the prefix."""
        frequencies = {name: tensor for name, tensor in self.tensors.items() if name == FREQUENCIES}
        return frequencies | {name: self.tensors[name][-1:] for name in HEAD}


def recognises(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is MDLM's or SDTT's; an empty one stands for none."""
    return not config or config.get("model_type") == "mdlm" or "n_blocks" in model_settings(config)


def model_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that holds the shape: SDTT's is under `model`."""
    section = config.get("model", config)
    return section if isinstance(section, Mapping) else {}


def tokenizer_name(config: Mapping[str, Any]) -> str | None:
    """Return the tokenizer that a configuration names, or means; None if it does neither."""
    for section, key in (("tokenizer", "name"), ("data", "tokenizer_name_or_path")):
        named = config.get(section)
        if isinstance(named, Mapping) and isinstance(named.get(key), str):
            return named[key]
    return "gpt2" if config.get("vocab_size") == GPT2_ROWS and recognises(config) else None


def load_published(place: Path, config: Mapping[str, Any], weights: Averaging | None = None) -> Denoiser:
    """Return the denoiser of a published checkpoint, in float32.

    Args:
        place: its directory, or its weight file.
        config: the contents of its config.json; empty if there is none.
        weights: the weights of a Lightning checkpoint: as trained, or their average.

    Raises:
        ValueError: if its tensors are not those that its settings ask for, or it is another model.
    """
    published = read_published(place, config, weights)
    with torch.device("meta"):
        denoiser = Denoiser(denoiser_config(published))
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in published.state().items()}
    denoiser.load_state_dict(state, assign=True)
    return denoiser.eval()


def read_published(place: Path, config: Mapping[str, Any], weights: Averaging | None) -> PublishedModel:
    """Return a published checkpoint, memory-mapped and checked; arguments are those of `load_published`."""
    paths = weight_files(place)
    if paths[0].suffix == ".safetensors":
        if weights is not None:
            raise ValueError(f"{paths[0]} holds one set of weights, and weights is {weights!r}; leave it out")
        state, metadata = read_safetensors(paths)
        described = {"model": metadata} if "n_blocks" in metadata else {}
    else:
        contents = [read_pickle(path) for path in paths]
        merged = {key: value for content in contents for key, value in content.items()}
        state, metadata = lightning_state(merged, weights, paths[0]), {"format": "pt"}
        described = lightning_config(merged)
    published = PublishedModel(*without_prefix(state, paths[0]), dict(config) or described, metadata)
    check(published)
    return published


def without_prefix(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return what stands before the names of a state dict, and its tensors without it."""
    prefixes = [name.removesuffix(EMBEDDING) for name in state if name.endswith(EMBEDDING)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} of them" if prefixes else ", ".join(list(state)[:3]) or "none at all"
        raise ValueError(
            f"{path} is no MDLM or SDTT checkpoint: it needs one tensor {EMBEDDING}, has {found}"
        )
    (prefix,) = prefixes
    # A tensor outside the prefix keeps its name, and `check` lists it as surplus.
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def denoiser_config(published: PublishedModel) -> DenoiserConfig:
    """Return our configuration of a published checkpoint: as its settings state, else as its tensors show.

    Raises:
        ValueError: if neither tells, or it is a network of another kind.
    """
    settings = model_settings(published.config)
    if published.config.get("time_conditioning") or settings.get("time_conditioning"):
        raise ValueError("it was trained with time_conditioning; networks here take no time")
    parameterization = published.config.get("parameterization", "subs")
    if isinstance(parameterization, str) and parameterization != "subs":
        raise ValueError(
            f"its parameterization is {parameterization!r}; only 'subs' is a masked denoiser here"
        )
    shape: dict[str, Any] = dict(shape_of(published.tensors))
    for ours, names in SETTINGS.items():
        for name in names:
            if name in settings:
                shape[ours] = whole_number(name, settings[name])
    rows = published.config.get("vocab_size", settings.get("vocab_size"))
    if rows is not None:
        shape["vocab_size"] = whole_number("vocab_size", rows) - 1
    for ours in ("num_attention_heads", "max_position_embeddings"):
        if ours not in shape:
            raise ValueError(
                f"nothing states its {' or '.join(SETTINGS[ours])}; put its config.json beside it"
            )
    return DenoiserConfig(**shape)


def shape_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the settings of ours that the shapes of a published checkpoint's tensors show."""
    rows, width = tensors[EMBEDDING].shape
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    shape = {"vocab_size": rows - 1, "hidden_size": width, "num_hidden_layers": len(blocks)}
    if "blocks.0.mlp.0.weight" in tensors:
        shape["mlp_ratio"] = len(tensors["blocks.0.mlp.0.weight"]) // width
    if "sigma_map.mlp.0.weight" in tensors:
        shape["condition_size"] = len(tensors["sigma_map.mlp.0.weight"])
    if FREQUENCIES in tensors:
        shape["num_attention_heads"] = width // (2 * len(tensors[FREQUENCIES]))
    return shape


def whole_number(name: str, value: Any) -> int:
    """Return a setting as an int."""
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its configuration gives {name} as {value!r}; it must be a whole number") from error


def check(published: PublishedModel) -> None:
    """Raise ValueError, with their names, if tensors are missing, surplus or misshapen."""
    config = denoiser_config(published)
    with torch.device("meta"):
        expected = {name.removeprefix(OURS): t.shape for name, t in Denoiser(config).state_dict().items()}
    for name in HEAD:
        expected[name] = torch.Size([expected[name][0] + 1, *expected[name][1:]])
    head_width = config.hidden_size // config.num_attention_heads
    expected[FREQUENCIES] = torch.Size([head_width // 2])
    found = {name: tensor.shape for name, tensor in published.tensors.items()}
    faults = {
        "missing": [name for name in expected if name not in found and name != FREQUENCIES],
        "surplus": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {list(found[name])} for {list(expected[name])}"
            for name in expected
            if name in found and found[name] != expected[name]
        ],
    }
    listed = [f"{fault}: {', '.join(names[:6])}" for fault, names in faults.items() if names]
    if listed:
        raise ValueError(f"its tensors do not fit its settings ({published.prefix}...): {'; '.join(listed)}")
    frequencies = published.tensors.get(FREQUENCIES)
    exponents = torch.arange(0, head_width, 2) / head_width
    if frequencies is not None and not torch.allclose(
        frequencies.float(),
        ROTARY_BASE**-exponents,
        rtol=1e-2 if frequencies.dtype != torch.float32 else 1e-5,
    ):
        raise ValueError(f"its {FREQUENCIES} are not those of the rotary base {ROTARY_BASE:g}")


def read_config(place: Path) -> dict[str, Any]:
    """Return the contents of the config.json of a directory, or beside a weight file; empty if none."""
    path = (place if place.is_dir() else place.parent) / CONFIG
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings")
    return config
