"""A corpus to tokens to train and to validate on, tokenized once and kept on disk.

Documents become one long array, in order, each followed by the separator; prompts with responses become
`Pairs`; a streamed corpus becomes a `TokenStream`. All are kept in the cache directory (`FEWSTEP_CACHE`,
by default `~/.cache/fewstep`) under a fingerprint of the source and the tokenizer, so that a second run
starts at once. The text is read once, to tokenize it: the fingerprint is that of the data set.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.encoding import DocumentEncoder, Encoder, PairEncoder, encoder_of
from fewstep.data.loader import Loader, TokenLoader, validation_batch
from fewstep.data.pairs import PairLoader, Pairs
from fewstep.data.streaming import ALL_THERE_ARE, StreamLoader, TokenStream
from fewstep.data.token_array import Chosen, token_array


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """The tokens of a corpus: arrays (number of tokens,), or rows of prompts and responses.

    Only what is trained on may be a stream.
    """

    training: np.ndarray | Pairs | TokenStream
    validation: np.ndarray | Pairs

    def loader(self, *, context_length: int, batch_size: int, seed: int) -> Loader:
        """Return what deals out the training tokens."""
        settings = {"context_length": context_length, "batch_size": batch_size, "seed": seed}
        if isinstance(self.training, Pairs):
            return PairLoader(pairs=self.training, **settings)
        if isinstance(self.training, TokenStream):
            return StreamLoader(stream=self.training, **settings)
        return TokenLoader(tokens=self.training, **settings)

    def held_out(self, *, context_length: int, max_contexts: int) -> Tensor:
        """Return up to `max_contexts` contexts of the validation tokens, (contexts, L)."""
        if isinstance(self.validation, Pairs):
            return self.validation.spread(context_length, max_contexts)
        return validation_batch(self.validation, context_length=context_length, max_contexts=max_contexts)


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    validation_corpus: Corpus | None = None,
    validation_fraction: float = 0.05,
    held_out_documents: int = 0,
    context_length: int,
    num_proc: int = 1,
    learn_fill: bool = True,
) -> TokenizedCorpus:
    """Return the training and validation tokens of `corpus`.

    Args:
        validation_corpus: what to validate on; without it, rows of `corpus` are held out.
        held_out_documents: hold out this many rows, the last ones; of a stream, the first.
        validation_fraction: without them, hold out one row in every `1 / validation_fraction`; of a
            corpus with fewer documents than that, the last `validation_fraction` of its tokens.
        num_proc: processes that tokenize.
        learn_fill: see `Pairs`.

    Raises:
        ValueError: if either part holds less than one context, or the settings do not fit.
    """
    check_settings(corpus, validation_corpus, held_out_documents)
    encode = encoder_of(corpus, tokenizer)
    if corpus.streaming:
        training = token_stream(corpus, encode, held_out_documents)
        validation = None
        if held_out_documents > 0:
            validation = token_stream(corpus, encode, held_out_documents, held_out=True).upto(ALL_THERE_ARE)
    else:
        training, validation = split_tokens(
            corpus.rows(),
            encode,
            share=0.0 if validation_corpus is not None else validation_fraction,
            held_out_documents=held_out_documents,
            context_length=context_length,
            num_proc=num_proc,
        )
    if validation_corpus is not None:
        rows = validation_corpus.rows()
        validation = tokens_of(rows, range(len(rows)), encoder_of(validation_corpus, tokenizer), num_proc)
    assert validation is not None
    if isinstance(encode, PairEncoder):
        training, validation = (
            Pairs(tokens=part, separator=encode.separator, learn_fill=learn_fill)
            for part in (training, validation)
        )
    for name, part in (("training", training), ("validation", validation)):
        if isinstance(part, np.ndarray) and len(part) < context_length:
            raise ValueError(
                f"{corpus.source!r} leaves {len(part)} {name} tokens, less than one context of "
                f"{context_length}; give more text or a smaller context_length"
            )
    return TokenizedCorpus(training=training, validation=validation)


def check_settings(corpus: Corpus, validation_corpus: Corpus | None, held_out_documents: int) -> None:
    """Raise ValueError if these say nothing of what to validate on, or say it twice."""
    if held_out_documents < 0:
        raise ValueError(f"held_out_documents is {held_out_documents}; it must be 0 or more")
    if validation_corpus is None:
        if corpus.streaming and held_out_documents == 0:
            raise ValueError(
                "a streamed corpus has no end to hold a fraction of; set held_out_documents, which are its "
                "first, or a validation_corpus"
            )
        return
    if held_out_documents > 0:
        raise ValueError("held_out_documents are of the corpus; leave them out, or the validation_corpus")
    if validation_corpus.streaming:
        raise ValueError("a validation_corpus is read whole; leave out its streaming")
    if validation_corpus.is_conditional != corpus.is_conditional:
        raise ValueError("corpus and validation_corpus must both have prompts and responses, or neither")


def split_tokens(
    rows: Dataset,
    encode: Encoder,
    *,
    share: float,
    held_out_documents: int,
    context_length: int,
    num_proc: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the tokens of the rows to train on and of those held out, None if `share` is 0."""
    count = len(rows)
    if held_out_documents >= count > 0:
        raise ValueError(
            f"held_out_documents is {held_out_documents} and the corpus has {count}; hold out fewer"
        )
    if held_out_documents > 0:
        chosen = range(count - held_out_documents), range(count - held_out_documents, count)
    elif share == 0.0:
        return tokens_of(rows, range(count), encode, num_proc), None
    elif count < round(1 / share):
        tokens = tokens_of(rows, range(count), encode, num_proc)
        boundary = max(len(tokens) - max(int(len(tokens) * share), context_length), 0)
        return tokens[:boundary], tokens[boundary:]
    else:
        numbers = np.arange(count)
        held_out = np.floor((numbers + 1) * share) > np.floor(numbers * share)
        chosen = numbers[~held_out], numbers[held_out]
    training, validation = (tokens_of(rows, part, encode, num_proc) for part in chosen)
    return training, validation


def tokenized(documents: Dataset, text_field: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the tokens of `documents`, each document followed by the separator, memory-mapped."""
    encode = DocumentEncoder(tokenizer=tokenizer, text_field=text_field)
    return tokens_of(documents, range(len(documents)), encode, num_proc=1)


def tokens_of(rows: Dataset, chosen: Chosen, encode: Encoder, num_proc: int) -> np.ndarray:
    """Return the tokens of the `chosen` rows from the cache, where they are put if they are not there."""
    numbers = str(chosen) if isinstance(chosen, range) else hashlib.sha256(chosen.tobytes()).hexdigest()
    path = cached_tokens(rows._fingerprint, numbers, encode.key).with_suffix(".npy")
    return token_array(rows, chosen, encode, path, num_proc=num_proc)


def token_stream(
    corpus: Corpus, encode: Encoder, first_documents: int, *, held_out: bool = False
) -> TokenStream:
    """Return the stream of `corpus` behind its first documents, or that of them alone."""
    rows = corpus.stream()
    rows = rows.take(first_documents) if held_out else rows.skip(first_documents)
    path = cached_tokens(corpus.identity, f"{held_out} {first_documents}", encode.key)
    return TokenStream(rows, encode, path)


def cached_tokens(*names: str) -> Path:
    """Return the path, without suffix, of tokens in the cache by all that decides them."""
    return cache_directory() / "tokens" / hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def cache_directory() -> Path:
    """Return the directory of derived files that can be made again."""
    return Path(os.environ.get("FEWSTEP_CACHE", "~/.cache/fewstep")).expanduser()
