"""`fewstep convert`: a published MDLM or SDTT checkpoint as one of fewstep, and back."""

import logging
from pathlib import Path

from safetensors import SafetensorError

from fewstep.data.tokenizer import load_tokenizer, vocab_size
from fewstep.models.adapters.conversion import Layout, in_layout, read_any, write_own, write_published
from fewstep.models.adapters.published import Averaging, denoiser_config
from fewstep.models.hub import locate

log = logging.getLogger("fewstep.convert")


def convert(
    model: str,
    output: str,
    layout: Layout = "fewstep",
    weights: Averaging | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
) -> Path:
    """Convert a checkpoint between the layouts of fewstep, MDLM and SDTT; no tensor changes a byte.

    Args:
        model: A directory, a weight file (safetensors or Lightning), a shipped model, or a hub repository.
        output: Directory to write, which must not be there or be empty.
        layout: What to write: a checkpoint of fewstep, or the files of MDLM or SDTT.
        weights: Of a Lightning checkpoint, the weights as trained ("raw") or their average ("ema").
        tokenizer: Directory or hub repository of the tokenizer, if the checkpoint neither holds nor names it.
        revision: Branch, tag or commit of a hub repository.

    Returns:
        The directory written.

    Raises:
        ValueError: if the checkpoint is damaged or of another network, or no tokenizer fits it.
    """
    directory = Path(output)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{output} is there already; choose another output")
    place = locate(model, revision=revision)
    try:
        published = read_any(place, weights)
    except SafetensorError as error:
        raise ValueError(f"cannot read {model}: {error}") from error
    text_tokenizer = load_tokenizer(place if tokenizer is None else tokenizer)
    tokens = denoiser_config(published).vocab_size
    if vocab_size(text_tokenizer) != tokens:
        raise ValueError(
            f"the tokenizer has {vocab_size(text_tokenizer)} tokens and {model} {tokens}; "
            "name the one it was trained with as tokenizer"
        )
    if layout == "fewstep":
        manifest = {"kind": "diffusion", "schedule": "log-linear"}
        manifest["converted_from"] = model if revision is None else f"{model}@{revision}"
        if weights is not None:
            manifest["weights_are"] = weights
        write_own(directory, published, text_tokenizer, manifest)
    else:
        write_published(directory, in_layout(published, layout), text_tokenizer)
    log.info("wrote %s", directory)
    return directory
