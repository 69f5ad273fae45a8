"""Documents to one long array of tokens on disk, tokenized once and memory-mapped.

The array is the documents in order, each followed by the separator. It is kept in the cache
directory (`FEWSTEP_CACHE`, by default `~/.cache/fewstep`) under a fingerprint of the text and the
tokenizer, so that a second run starts at once.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.tokenizer import vocab_size

TOKENIZED_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """The token arrays of a corpus: `training` and `validation`, each (number of tokens,)."""

    training: np.ndarray
    validation: np.ndarray


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    validation_corpus: Corpus | None = None,
    validation_fraction: float = 0.05,
    context_length: int,
) -> TokenizedCorpus:
    """Return the training and validation tokens of `corpus`.

    Without a `validation_corpus`, one document in every `1 / validation_fraction` is held out; of a
    corpus with fewer documents than that, the last `validation_fraction` of its tokens.

    Raises:
        ValueError: if either part holds less than one context.
    """
    documents = corpus.documents()
    every = round(1 / validation_fraction)
    if validation_corpus is not None:
        training = tokenized(documents, corpus.text_field, tokenizer)
        validation = tokenized(validation_corpus.documents(), validation_corpus.text_field, tokenizer)
    elif len(documents) >= every:
        share = validation_fraction
        held_out = [i for i in range(len(documents)) if int((i + 1) * share) > int(i * share)]
        kept = sorted(set(range(len(documents))) - set(held_out))
        training = tokenized(documents.select(kept), corpus.text_field, tokenizer)
        validation = tokenized(documents.select(held_out), corpus.text_field, tokenizer)
    else:
        tokens = tokenized(documents, corpus.text_field, tokenizer)
        boundary = len(tokens) - max(int(len(tokens) * validation_fraction), context_length)
        training, validation = tokens[: max(boundary, 0)], tokens[max(boundary, 0) :]
    for name, part in (("training", training), ("validation", validation)):
        if len(part) < context_length:
            raise ValueError(
                f"{corpus.source!r} leaves {len(part)} {name} tokens, less than one context of "
                f"{context_length}; give more text or a smaller context_length"
            )
    return TokenizedCorpus(training=training, validation=validation)


def tokenized(documents: Dataset, text_field: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the tokens of `documents`, each document followed by the separator, memory-mapped."""
    path = cache_directory() / "tokens" / f"{fingerprint(documents, text_field, tokenizer)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            np.save(file, tokenize(documents, text_field, tokenizer))
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


def tokenize(documents: Dataset, text_field: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the tokens of `documents` as one array of the smallest sufficient integer type."""
    dtype = np.uint16 if vocab_size(tokenizer) < 2**16 else np.uint32
    pieces = []
    for texts in batches_of_texts(documents, text_field):
        for tokens in tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]:
            pieces.append(np.array([*tokens, tokenizer.eos_token_id], dtype=dtype))
    return np.concatenate(pieces)


def batches_of_texts(documents: Dataset, text_field: str) -> Iterator[list[str]]:
    """Yield the texts of the documents in order, some at once."""
    for start in range(0, len(documents), TOKENIZED_AT_ONCE):
        yield documents[start : start + TOKENIZED_AT_ONCE][text_field]


def fingerprint(documents: Dataset, text_field: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the documents' text and of the tokenizer."""
    digest = hashlib.sha256()
    digest.update(tokenizer_hash(tokenizer).encode())
    for texts in batches_of_texts(documents, text_field):
        for text in texts:
            digest.update(len(text).to_bytes(8, "little"))
            digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides which tokens a text becomes."""
    rules: Any = tokenizer.backend_tokenizer
    return hashlib.sha256(rules.to_str().encode()).hexdigest()[:16]


def cache_directory() -> Path:
    """Return the directory of derived files that can be made again."""
    return Path(os.environ.get("FEWSTEP_CACHE", "~/.cache/fewstep")).expanduser()
