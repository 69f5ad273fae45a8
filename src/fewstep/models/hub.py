"""Where a checkpoint lies: inside this package, in a directory, or on the Hugging Face hub.

A name is looked up in that order. On the hub, `name@revision` is a branch, tag or commit. What was
downloaded once is found again without a network; `HF_HUB_OFFLINE=1` asks for that alone.
"""

import logging
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fewstep.models.card import MODEL_CARD, model_card_of

SHIPPED = Path(__file__).parent.parent / "assets"
MANIFEST = "manifest.json"
TOKENIZER_FILES = ("*.json", "vocab*", "merges.txt", "*.model", "*.jinja")
CHECKPOINT_FILES = (*TOKENIZER_FILES, "model*.safetensors")
PICKLED_FILES = ("pytorch_model*.bin",)
"""Fetched only where there is no safetensors file."""

log = logging.getLogger(__name__)


def resolve(name_or_path: str | Path) -> str | Path:
    """Return the directory of a shipped model or tokenizer for its name, and anything else as it is."""
    shipped = SHIPPED / name_or_path
    return shipped if shipped.is_dir() and not Path(name_or_path).exists() else name_or_path


def shipped_models() -> list[str]:
    """Return the names of the small pretrained models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def locate(
    name_or_path: str | Path, *, revision: str | None = None, files: tuple[str, ...] = CHECKPOINT_FILES
) -> Path:
    """Return where a checkpoint lies on this machine, after a download if it is on the hub.

    Args:
        name_or_path: a shipped model, a directory or a file, or a hub repository `name[@revision]`.
        revision: branch, tag or commit of a hub repository.
        files: patterns of the files that are wanted of a hub repository.

    Raises:
        ValueError: if there is no such place, or the hub does not have it or cannot be reached.
    """
    place = Path(resolve(name_or_path))
    if place.exists():
        if revision is not None:
            raise ValueError(
                f"{name_or_path} is on this machine and has no revision {revision!r}; leave it out"
            )
        return place
    name, _, tag = str(name_or_path).partition("@")
    if tag and revision is not None:
        raise ValueError(f"{name_or_path} names a revision, and so does revision={revision!r}; give one")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError("there is no such file or directory, and this cannot be a hub repository") from error
    return _snapshot(name, revision or tag or None, files)


def _snapshot(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    try:
        place = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
        if files is CHECKPOINT_FILES and not any(place.glob("model*.safetensors")):
            snapshot_download(repository, revision=revision, allow_patterns=list(PICKLED_FILES))
    except Exception as error:  # the hub client raises many kinds; each means the same to a user
        lines = str(error).strip().splitlines()
        reason = next((line for line in lines if "Not Found" in line), lines[0] if lines else repr(error))
        at = "" if revision is None else f" at revision {revision!r}"
        raise ValueError(
            f"no such directory, and the hub has no {repository!r}{at} to give: {reason}"
        ) from error
    return place


def share(model: str, repository: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload a checkpoint to the Hugging Face hub, with its model card, in one commit.

    Args:
        model: A checkpoint directory, or a shipped model.
        repository: Name on the hub, such as me/my-student; created if it is not there.
        revision: Branch to commit to, created if it is not there; by default the main one.
        private: Whether a repository that is created is hidden from others.

    Returns:
        The address of the commit.

    Raises:
        ValueError: if there is no such checkpoint, or the hub refuses or cannot be reached.
    """
    directory = Path(resolve(model))
    if not (directory / "config.json").is_file():
        raise ValueError(f"{model} is no checkpoint directory: it has no config.json; name one that has")
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    uploads = [CommitOperationAdd(path.name, path) for path in paths]
    if not (directory / MODEL_CARD).exists():
        uploads.append(CommitOperationAdd(MODEL_CARD, model_card_of(directory).encode()))
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository, uploads, commit_message="Upload of a fewstep checkpoint", revision=revision
        )
    except Exception as error:  # as above
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ValueError(f"cannot share {model} as {repository!r}: {reason}") from error
    log.info("shared as %s", commit.commit_url)
    return commit.commit_url
