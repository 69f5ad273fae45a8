"""Weights of other code bases as memory-mapped tensors: safetensors, or pickles that run nothing.

A pickle is read by torch's `weights_only` unpickler. The checkpoints of the MDLM and SDTT code bases
(PyTorch Lightning) also pickle their configuration and their tokenizer; in place of each such object
stands one that keeps what was pickled of it and runs no code. Anything else is refused.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

KNOWN_PACKAGES = {
    "omegaconf",
    "transformers",
    "tokenizers",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "typing",
    "collections",
}
KNOWN_BUILTINS = {
    f"builtins.{kind}" for kind in ("dict", "list", "tuple", "set", "str", "int", "float", "bool")
}
DEFAULTDICT = "collections.defaultdict"
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors", "*.ckpt", "*.pt", "*.bin")


class StandIn:
    """What takes the place of a pickled object: it keeps the state and does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def weight_files(place: Path) -> list[Path]:
    """Return the weight files of a directory, of its preferred kind; or `place` itself if it is a file.

    Raises:
        ValueError: if there is none.
    """
    if place.is_file():
        return [place]
    for pattern in WEIGHT_FILES:
        paths = sorted(place.glob(pattern))
        if paths:
            return paths
    raise ValueError(f"{place} holds no weights: no safetensors, bin, pt or ckpt file")


def read_safetensors(paths: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of safetensors files, memory-mapped, and the metadata of the files."""
    tensors, metadata = {}, {}
    for path in paths:
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            metadata |= file.metadata() or {}
    return tensors, metadata


def read_pickle(path: Path) -> dict[str, Any]:
    """Return what `torch.save` wrote to `path`, its tensors memory-mapped.

    Raises:
        ValueError: if the file is damaged, or reading it could run code.
    """
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unknown = [name for name in classes if not is_known(name)]
        if unknown:
            raise ValueError(
                f"{path} is a pickle that would run {', '.join(sorted(unknown)[:4])}; only tensors and "
                "settings are read from a pickle: save the weights as safetensors"
            )
        stand_ins: list[Any] = [(empty_mapping if name == DEFAULTDICT else StandIn, name) for name in classes]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot read {path} without running what it holds: {reason}; save the weights as safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; weights are a mapping of names to tensors"
        )
    return dict(content)


def empty_mapping(*_: Any) -> OrderedDict[Any, Any]:
    """Return what takes the place of a defaultdict, whose items the unpickler then sets."""
    return OrderedDict()


def is_known(name: str) -> bool:
    """Return whether `StandIn` may take the place of the class `name`, "module.class"."""
    return name in KNOWN_BUILTINS or name.partition(".")[0] in KNOWN_PACKAGES


def plain(value: Any) -> Any:
    """Return `value` with every OmegaConf container and node in it as a plain dict, list or value."""
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, Mapping) else {}
        return plain(state["_content"] if "_content" in state else state.get("_val"))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
