"""Generative perplexity: how likely a judge finds generated text.

The decoded text is tokenized again for the judge, so models with different tokenizers compare, best in
bits per byte. Every token counts: the first is predicted from the judge's prefix token. A judge likes
repetition; read its verdict beside the unigram entropy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fewstep.evaluation.judge import Judge

BATCH_TOKENS = 1024
MAX_LENGTH = 1024

Window = tuple[int, list[int]]
"""The number of a text, and consecutive tokens of it that the judge reads together."""


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
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenerativePerplexity:
    """Return what `judge` finds of `texts`, each scored alone, in float32.

    Args:
        texts: Generated texts, decoded.
        judge: The model that scores them.
        batch_tokens: Tokens in one forward pass, padding included; one window at least.
        max_length: Tokens the judge reads together, the prefix included; by default 1024, or as many as
            it can. A longer text is scored in windows of this size, each begun anew from the prefix.
        progress: Called after each forward pass with the tokens scored so far, and in all.

    Raises:
        ValueError: if there is no text, one is empty, a setting is out of range, or logits are not finite.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("there is nothing to score; pass a list of one or more generated texts")
    limit = getattr(judge.model.config, "max_position_embeddings", None)
    if max_length is None:
        max_length = min(MAX_LENGTH, limit or MAX_LENGTH)
    if max_length < 2 or (limit is not None and max_length > limit):
        raise ValueError(
            f"max_length is {max_length}; the judge {judge.name!r} reads between 2 and "
            f"{limit or 'any number of'} tokens at once"
        )
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    num_bytes = tuple(len(text.encode()) for text in texts)
    tokens = judge.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    empty = [index for index, text_tokens in enumerate(tokens) if not text_tokens]
    if empty:
        raise ValueError(f"text {empty[0]} of {len(texts)} is empty; leave empty texts out before scoring")
    num_tokens = tuple(len(text_tokens) for text_tokens in tokens)
    nats = [0.0] * len(texts)
    done = 0
    for batch in _batches(_windows(tokens, max_length - 1), batch_tokens):
        for (index, window), window_nats in zip(batch, _score(judge, batch), strict=True):
            nats[index] += window_nats
            done += len(window)
        if progress is not None:
            progress(done, sum(num_tokens))
    return GenerativePerplexity(nats=tuple(nats), num_tokens=num_tokens, num_bytes=num_bytes)


@torch.inference_mode()
def _score(judge: Judge, batch: list[Window]) -> list[float]:
    """Return the nats of each window of a batch.

    Padding is on the right, where a causal model cannot see it: no attention mask is needed, and the
    fast causal attention stays in use. Log-probabilities are taken of one window's own tokens at a time.
    """
    longest = max(len(window) for _, window in batch)
    padding = judge.prefix_token_id
    inputs_BL = torch.tensor(
        [[padding, *window[:-1], *[padding] * (longest - len(window))] for _, window in batch]
    )
    logits_BLV = judge.model(input_ids=inputs_BL.to(judge.model.device), use_cache=False).logits
    nats = []
    for (index, window), logits_LV in zip(batch, logits_BLV, strict=True):
        targets_L = torch.tensor(window, device=logits_LV.device)
        nats_L = F.cross_entropy(logits_LV[: len(window)].float(), targets_L, reduction="none")
        total = nats_L.sum(dtype=torch.float64).item()
        if not math.isfinite(total):
            raise ValueError(
                f"the judge {judge.name!r} returned logits that are not finite for text {index}; "
                "its weights are damaged or overflow: load it again, or name another judge"
            )
        nats.append(total)
    return nats


def _windows(tokens: list[list[int]], length: int) -> list[Window]:
    """Return the windows of all texts, the longest first: those beside each other need little padding."""
    windows = [
        (index, text_tokens[start : start + length])
        for index, text_tokens in enumerate(tokens)
        for start in range(0, len(text_tokens), length)
    ]
    return sorted(windows, key=lambda window: len(window[1]), reverse=True)


def _batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield consecutive windows, as many as fit `batch_tokens` when padded to the first."""
    start = 0
    while start < len(windows):
        count = max(1, batch_tokens // len(windows[start][1]))
        yield windows[start : start + count]
        start += count


def _ratio_standard_error(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the standard error of sum(numerators) / sum(denominators) over independent pairs."""
    count, total = len(numerators), sum(denominators)
    if count < 2:
        return math.nan
    ratio = sum(numerators) / total
    squares = sum((n - ratio * d) ** 2 for n, d in zip(numerators, denominators, strict=True))
    return math.sqrt(squares * count / (count - 1)) / total
