"""Tokenizers: V real tokens, among them a document separator, and the mask as one extra id, V.

Any `transformers` fast tokenizer serves. The extra token is added if it is not there, as `<|mask|>`.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"
MASK = "<|mask|>"


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

    Raises:
        ValueError: if it has no separator, or a mask that is not its last id.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set its eos_token and save it again")
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    if tokenizer.mask_token_id != len(tokenizer) - 1:
        raise ValueError(
            f"the tokenizer's mask token has id {tokenizer.mask_token_id} of {len(tokenizer)}; "
            "it must be the last id, behind the real tokens"
        )
    return tokenizer


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved in a directory, or on the Hugging Face hub, with a mask token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load a tokenizer from {str(name_or_path)!r}: {reason}; name a directory or repository"
        ) from error
    return with_mask_token(tokenizer)


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return V, the number of real tokens: all ids but the mask, which is the last."""
    return len(tokenizer) - 1
