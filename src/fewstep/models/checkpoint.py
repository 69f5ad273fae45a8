"""The one checkpoint format: a directory that `transformers` can load, with a manifest beside.

    config.json, model.safetensors     the network, float32 or half precision
    tokenizer.json, ...                its tokenizer, the mask as last id
    manifest.json                      what it is and how it was made

A checkpoint is written beside its place and renamed, so a kill while saving leaves the one before.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
MODEL_CLASSES = {DenoiserConfig.model_type: Denoiser, AutoregressiveConfig.model_type: AutoregressiveLM}
SHIPPED = Path(__file__).parent.parent / "assets"


def save_checkpoint(
    directory: Path,
    model: Denoiser | AutoregressiveLM,
    tokenizer: PreTrainedTokenizerBase,
    manifest: dict[str, Any],
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save `model` (or `state_dict` in its place), its tokenizer and its manifest as `directory`."""
    with replacing(directory) as unfinished:
        model.save_pretrained(unfinished, state_dict=state_dict)
        tokenizer.save_pretrained(unfinished)
        manifest = {**manifest, "weights": weights_hash(unfinished)}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load_model(name_or_path: str | Path, *, revision: str | None = None) -> Denoiser | AutoregressiveLM:
    """Return the network of a checkpoint directory, a shipped model, or a hub repository, in float32.

    Raises:
        ValueError: if there is none, or it is truncated, incomplete, or of another kind.
    """
    path = str(resolve(name_or_path))
    try:
        config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        model_class = MODEL_CLASSES.get(config.get("model_type", ""))
        if model_class is None:
            raise ValueError(f"its model_type is {config.get('model_type')!r}, which is none of fewstep's")
        model, report = model_class.from_pretrained(
            path, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load a model from {str(name_or_path)!r}: {reason}; "
            f"name a checkpoint directory, a hub repository, or one of {', '.join(shipped_models())}"
        ) from error
    wrong = sorted(set(report["missing_keys"]) | set(report["unexpected_keys"]))
    if wrong or report["mismatched_keys"]:
        names = ", ".join([*wrong, *(str(key) for key in report["mismatched_keys"])][:8])
        raise ValueError(f"the weights in {name_or_path} do not fit its config.json: {names}")
    for parameter in model.parameters():  # as loaded, their addresses differ, and so would rounding
        parameter.data = parameter.data.clone()
    return model


def resolve(name_or_path: str | Path) -> str | Path:
    """Return the directory of a shipped model or tokenizer for its name, and anything else as it is."""
    shipped = SHIPPED / name_or_path
    return shipped if shipped.is_dir() and not Path(name_or_path).exists() else name_or_path


def shipped_models() -> list[str]:
    """Return the names of the small pretrained models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def read_manifest(name_or_path: str | Path) -> dict[str, Any]:
    """Return the manifest of a local or shipped checkpoint; empty if it has none."""
    path = Path(resolve(name_or_path)) / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def weights_hash(directory: str | Path) -> str:
    """Return a hash of the weight files of a checkpoint directory."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).glob("*.safetensors")):
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
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, (SafetensorError, RuntimeError)):  # what a full disk becomes in these libraries
            raise OSError(f"cannot save {directory}: {str(error).splitlines()[0]}") from error
        raise
    previous = directory.with_name(f"{directory.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if directory.exists():
        directory.rename(previous)
    unfinished.rename(directory)
    shutil.rmtree(previous, ignore_errors=True)


def recover(directory: Path) -> None:
    """Put back a directory that a kill caught between the two renames of `replacing`."""
    previous = directory.with_name(f"{directory.name}.previous")
    if previous.exists() and not directory.exists():
        previous.rename(directory)
