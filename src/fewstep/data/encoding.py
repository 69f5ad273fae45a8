"""Rows of a corpus to token ids: documents, and prompts with their responses.

Tokens that are given and not to be learned, those of a prompt, are marked by their complement: id i is
stored as ~i = -1 - i. Losses and corruption leave negative ids as they are: see `diffusion.masking`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from fewstep.data.chat import prompt_and_response
from fewstep.data.corpora import Corpus
from fewstep.data.detokenize import DETOKENIZERS
from fewstep.data.tokenizer import vocab_size

Columns = Mapping[str, Sequence[Any]]
"""Some rows of a data set, column by column."""


class Encoder(Protocol):
    """Turns rows into tokens."""

    @property
    def dtype(self) -> type[np.integer]: ...
    @property
    def key(self) -> str: ...
    def __call__(self, columns: Columns) -> list[np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class DocumentEncoder:
    """Each document's tokens and the separator behind them; blank documents give nothing."""

    tokenizer: PreTrainedTokenizerBase
    text_field: str
    detokenizer: str | None = None

    @property
    def dtype(self) -> type[np.integer]:
        """The smallest type that holds every token."""
        return np.uint16 if vocab_size(self.tokenizer) < 2**16 else np.uint32

    @property
    def key(self) -> str:
        """All that decides which tokens a row becomes."""
        return f"document {tokenizer_hash(self.tokenizer)} {self.text_field} {self.detokenizer}"

    def __call__(self, columns: Columns) -> list[np.ndarray]:
        """Return the tokens of each document that is not blank."""
        texts = [text for text in columns[self.text_field] if text and text.strip()]
        if self.detokenizer is not None:
            texts = [DETOKENIZERS[self.detokenizer](text) for text in texts]
        separator: Any = self.tokenizer.eos_token_id
        return [
            np.array([*ids, separator], dtype=self.dtype)
            for ids in token_ids(self.tokenizer, texts, plain=True)
        ]


@dataclass(frozen=True, kw_only=True)
class PairEncoder:
    """Each prompt's tokens, marked as given, its response's tokens, and the separator.

    Prompt and response are tokenized each for itself, as a prompt is when a text is sampled. Pairs of
    which a part is blank, or which spell the mask, give nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus

    @property
    def dtype(self) -> type[np.integer]:
        """A type that holds marked tokens, which are negative."""
        return np.int32

    @property
    def separator(self) -> int:
        """The id behind each response."""
        separator: Any = self.tokenizer.eos_token_id
        return separator

    @property
    def key(self) -> str:
        """All that decides which tokens a row becomes."""
        return f"pair {tokenizer_hash(self.tokenizer)} {self.corpus.fields} {self.tokenizer.chat_template}"

    def __call__(self, columns: Columns) -> list[np.ndarray]:
        """Return the tokens of each pair."""
        pairs = [(prompt, response) for prompt, response in self.texts(columns) if prompt and response]
        if not pairs:
            return []
        plain = self.corpus.messages_field is None
        prompts, responses = (token_ids(self.tokenizer, texts, plain) for texts in zip(*pairs, strict=True))
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            if self.tokenizer.mask_token_id in (*prompt, *response):
                continue
            given = ~np.array(prompt, dtype=np.int32)
            rows.append(np.array([*given, *response, self.separator], dtype=np.int32))
        return rows

    def texts(self, columns: Columns) -> list[tuple[str, str]]:
        """Return each row's prompt and response."""
        if self.corpus.messages_field is not None:
            conversations = columns[self.corpus.messages_field]
            return [prompt_and_response(self.tokenizer, messages) for messages in conversations if messages]
        return list(zip(*(columns[field] for field in self.corpus.fields), strict=True))


def encoder_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> DocumentEncoder | PairEncoder:
    """Return what turns the rows of `corpus` into tokens."""
    if corpus.is_conditional:
        return PairEncoder(tokenizer=tokenizer, corpus=corpus)
    return DocumentEncoder(tokenizer=tokenizer, text_field=corpus.text_field, detokenizer=corpus.detokenizer)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: bool) -> list[list[int]]:
    """Return the ids of each text; of `plain` ones, words that spell a special token are just words."""
    if not texts:
        return []
    ids: Any = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain, verbose=False)
    return ids["input_ids"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides which tokens a text becomes."""
    rules: Any = tokenizer.backend_tokenizer
    return hashlib.sha256(rules.to_str().encode()).hexdigest()[:16]
