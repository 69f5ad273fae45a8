"""Generative perplexity: how likely a judge finds generated text.

The decoded text is tokenized again for the judge, so models with different tokenizers compare, best in
bits per byte; where the judge has the vocabulary of the model, it can read the model's own tokens. Every
token counts: the first is predicted from the judge's prefix token. A judge likes repetition; read its
verdict beside the unigram entropy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fewstep.data.chat import up_to_separator
from fewstep.evaluation.judge import Judge
from fewstep.evaluation.scoring import BATCH_TOKENS, Window, score, window_length


@dataclass(frozen=True, kw_only=True)
class GenerativePerplexity:
    """What a judge found: for each text its negative log-likelihood in nats, tokens, and UTF-8 bytes.

    Standard errors treat texts as independent, and are NaN for a single one.
    """

    nats: tuple[float, ...]
    num_tokens: tuple[int, ...]
    num_bytes: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """exp(nats of all texts / tokens of all texts)."""
        return math.exp(sum(self.nats) / sum(self.num_tokens))

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of `perplexity`, to first order."""
        return self.perplexity * _ratio_standard_error(self.nats, self.num_tokens)

    @property
    def sample_mean_perplexity(self) -> float:
        """exp(mean over texts of a text's nats a token); each text weighs the same, however long."""
        return math.exp(sum(self._losses) / len(self.nats))

    @property
    def sample_mean_perplexity_standard_error(self) -> float:
        """Standard error of `sample_mean_perplexity`, to first order."""
        return self.sample_mean_perplexity * _ratio_standard_error(self._losses, [1] * len(self.nats))

    @property
    def bits_per_byte(self) -> float:
        """nats of all texts / ln 2 / bytes of all texts; it does not depend on the judge's tokens."""
        return sum(self.nats) / math.log(2) / sum(self.num_bytes)

    @property
    def bits_per_byte_standard_error(self) -> float:
        """Standard error of `bits_per_byte`, to first order."""
        return _ratio_standard_error(self.nats, self.num_bytes) / math.log(2)

    @property
    def _losses(self) -> list[float]:
        return [nats / tokens for nats, tokens in zip(self.nats, self.num_tokens, strict=True)]


def generative_perplexity(
    texts: Sequence[str],
    judge: Judge,
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenerativePerplexity:
    """Return what `judge` finds of `texts`, each scored alone, in float32.

    Args:
        texts: Generated texts, decoded. All of a text counts; for what comes before its end-of-text token
            alone, decode `until_end_of_text` of its tokens.
        judge: The model that scores them.
        tokens: The tokens of each text, which the judge reads as they are; only for a judge with
            `has_vocabulary_of` the tokenizer that made them. By default the texts are tokenized for it.
        batch_tokens: Tokens in one forward pass, padding included; one window at least.
        max_length: Tokens the judge reads together, the prefix included; by default 1024, or as many as
            it can. A longer text is scored in windows of this size, each begun anew from the prefix.
        progress: Called after each forward pass with the tokens scored so far, and in all.

    Raises:
        ValueError: if there is no text, one is empty, tokens do not belong to the texts or the judge, a
            setting is out of range, or logits are not finite.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("there is nothing to score; pass a list of one or more generated texts")
    length = window_length(judge, max_length) - 1
    if tokens is None:
        read = judge.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    else:
        read = tokens
        _check_tokens(tokens, len(texts), judge)
    for index, text_tokens in enumerate(read):
        if len(text_tokens) == 0 or not texts[index]:
            raise ValueError(f"text {index} of {len(texts)} is empty; leave empty texts out before scoring")
    windows = [
        Window(text=index, context=[], targets=list(text_tokens[start : start + length]))
        for index, text_tokens in enumerate(read)
        for start in range(0, len(text_tokens), length)
    ]
    nats = [0.0] * len(texts)
    scores = score(judge, windows, batch_tokens=batch_tokens, progress=progress)
    for window, window_nats in zip(windows, scores, strict=True):
        nats[window.text] += window_nats
    return GenerativePerplexity(
        nats=tuple(nats),
        num_tokens=tuple(len(text_tokens) for text_tokens in read),
        num_bytes=tuple(len(text.encode()) for text in texts),
    )


def has_vocabulary_of(judge: Judge, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether each token of `tokenizer`, its mask aside, is the judge's token of the same id."""
    vocabulary = tokenizer.get_vocab()
    vocabulary.pop(str(tokenizer.mask_token), None)
    return vocabulary.items() <= judge.tokenizer.get_vocab().items()


def until_end_of_text(tokens: Sequence[int], end_token_id: int) -> list[int]:
    """Return the tokens before the first `end_token_id` that ends something.

    End-of-text tokens at the beginning open a text, and are left out.
    """
    start = next((place for place, token in enumerate(tokens) if token != end_token_id), len(tokens))
    return up_to_separator(tokens, end_token_id, start)[start:]


def _check_tokens(tokens: Sequence[Sequence[int]], num_texts: int, judge: Judge) -> None:
    if len(tokens) != num_texts:
        raise ValueError(f"there are {num_texts} texts and tokens of {len(tokens)}; pass those of each text")
    size = judge.model.config.get_text_config().vocab_size
    highest = max((token for text_tokens in tokens for token in text_tokens), default=0)
    if highest >= size:
        raise ValueError(
            f"token {highest} is none of the {size} that the judge {judge.name!r} knows; leave tokens out, "
            "and the texts are tokenized for it"
        )


def _ratio_standard_error(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the standard error of sum(numerators) / sum(denominators) over independent pairs."""
    count, total = len(numerators), sum(denominators)
    if count < 2:
        return math.nan
    ratio = sum(numerators) / total
    squares = sum((n - ratio * d) ** 2 for n, d in zip(numerators, denominators, strict=True))
    return math.sqrt(squares * count / (count - 1)) / total
