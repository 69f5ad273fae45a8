"""The one checkpoint format: a directory that `transformers` can load, with a manifest beside.

    config.json, model.safetensors     the network, float32 or half precision
    tokenizer.json, ...                its tokenizer, the mask as last id
    manifest.json                      what it is and how it was made
    README.md                          the same for people and for the hub: a model card

A checkpoint is written beside its place and renamed, so a kill while saving leaves the one before.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from fewstep.models.adapters import hugging_face_checkpoint, published
from fewstep.models.adapters.published import Averaging, load_published
from fewstep.models.adapters.weight_files import weight_files
from fewstep.models.card import MODEL_CARD, model_card
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.hub import MANIFEST, locate, resolve, shipped_models
from fewstep.models.language_model import AutoregressiveLM, Denoiser, LanguageModel

__all__ = ["load_model", "read_manifest", "resolve", "save_checkpoint", "shipped_models", "weights_hash"]

WEIGHTS = "model.safetensors"
MODEL_CLASSES = {DenoiserConfig.model_type: Denoiser, AutoregressiveConfig.model_type: AutoregressiveLM}


def save_checkpoint(
    directory: Path,
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    manifest: dict[str, Any],
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save `model` (or `state_dict` in its place), its tokenizer and its manifest as `directory`."""
    with replacing(directory) as unfinished:
        model.save_pretrained(unfinished, state_dict=state_dict)
        tokenizer.save_pretrained(unfinished)
        write_manifest(unfinished, directory.name, manifest)


def write_manifest(directory: Path, name: str, manifest: dict[str, Any]) -> None:
    """Write the manifest and the model card of the network `name` that is saved in `directory`."""
    manifest = {**manifest, "weights": weights_hash(directory)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    card = model_card(name, manifest, published.read_config(directory))
    (directory / MODEL_CARD).write_text(card, encoding="utf-8")


def load_model(
    name_or_path: str | Path, *, revision: str | None = None, weights: Averaging | None = None
) -> LanguageModel:
    """Return the network of a checkpoint, in float32.

    Args:
        name_or_path: a checkpoint directory or weight file, a shipped model, or a hub repository; of
            fewstep, MDLM or SDTT, or of a bidirectional transformers model.
        revision: branch, tag or commit of a hub repository.
        weights: of a Lightning checkpoint, the weights as trained ("raw") or their average ("ema").

    Raises:
        ValueError: if there is none, or it is truncated, incomplete, or of another kind.
    """
    try:
        place = locate(name_or_path, revision=revision)
    except ValueError as error:
        raise ValueError(
            f"cannot load a model from {str(name_or_path)!r}: {error}; "
            f"name a checkpoint directory, a hub repository, or one of {', '.join(shipped_models())}"
        ) from error
    try:
        config = published.read_config(place)
        if published.recognises(config):
            return load_published(place, config, weights)
        if weights is not None:
            raise ValueError(f"weights is {weights!r}, and only a Lightning checkpoint holds two kinds")
        for recognises, load in LOADERS:
            if recognises(config):
                return load(str(place), config)
        raise ValueError(f"its model_type is {config.get('model_type')!r}, which fewstep does not know")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load a model from {str(name_or_path)!r}: {reason}") from error


def is_own(config: dict[str, Any]) -> bool:
    """Return whether a config.json is that of a network of fewstep."""
    return config.get("model_type") in MODEL_CLASSES


def load_own(directory: str, config: dict[str, Any]) -> Denoiser | AutoregressiveLM:
    """Return a network of fewstep from its directory."""
    model_class = MODEL_CLASSES[config["model_type"]]
    model, report = model_class.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong = sorted(set(report["missing_keys"]) | set(report["unexpected_keys"]))
    if wrong or report["mismatched_keys"]:
        names = ", ".join([*wrong, *(str(key) for key in report["mismatched_keys"])][:8])
        raise ValueError(f"its weights do not fit its config.json: {names}")
    for parameter in model.parameters():  # as loaded, their addresses differ, and so would rounding
        parameter.data = parameter.data.clone()
    return model


LOADERS: tuple[
    tuple[Callable[[dict[str, Any]], bool], Callable[[str, dict[str, Any]], LanguageModel]], ...
] = (
    (is_own, load_own),
    (hugging_face_checkpoint.recognises, hugging_face_checkpoint.load_hugging_face),
)
"""What reads a directory, by its config.json; the first that recognises it."""


def read_manifest(name_or_path: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """Return the manifest of a checkpoint; empty if it has none."""
    path = locate(name_or_path, revision=revision, files=(MANIFEST,)) / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def weights_hash(name_or_path: str | Path) -> str:
    """Return a hash of the weight files of a checkpoint."""
    digest = hashlib.sha256()
    for path in weight_files(locate(name_or_path)):
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `directory` when the block ends well.

    Raises:
        OSError: if the files cannot be written, as on a full disk.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    recover(directory)
    target = unfinished(directory)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        yield target
        for path in target.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, (SafetensorError, RuntimeError)):  # what a full disk becomes in these libraries
            raise OSError(f"cannot save {directory}: {str(error).splitlines()[0]}") from error
        raise
    previous = directory.with_name(f"{directory.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if directory.exists():
        directory.rename(previous)
    target.rename(directory)
    shutil.rmtree(previous, ignore_errors=True)


def unfinished(directory: Path) -> Path:
    """Return where `replacing` lets the files of `directory` be written."""
    return directory.with_name(f"{directory.name}.unfinished")


def recover(directory: Path) -> None:
    """Put back a directory that a kill caught between the two renames of `replacing`."""
    previous = directory.with_name(f"{directory.name}.previous")
    if previous.exists() and not directory.exists():
        previous.rename(directory)
