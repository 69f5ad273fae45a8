"""Scoring: the negative log-likelihood of tokens under a judge, many windows in one pass.

A window is what the judge reads together. It begins with the judge's prefix token, and only its targets
count: what a text's nats are made of, and what is read but not scored, its caller decides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fewstep.evaluation.judge import Judge

BATCH_TOKENS = 1024
MAX_LENGTH = 1024
LEAST_FILLED = 0.9


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of text number `text`: the judge reads `context`, and `targets` are scored."""

    text: int
    context: list[int]
    targets: list[int]

    @property
    def length(self) -> int:
        """Tokens that the judge reads, the prefix included: the last target is not read."""
        return len(self.context) + len(self.targets)


def score(
    judge: Judge,
    windows: Sequence[Window],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Return the nats of each window's targets, in float32 up to their sum.

    Args:
        judge: The model that scores them.
        windows: What it reads, each with at least one target.
        batch_tokens: Tokens in one forward pass, padding included; one window at least.
        progress: Called after each forward pass with the targets scored so far, and in all.

    Raises:
        ValueError: if `batch_tokens` is below 1, or logits are not finite.
    """
    nats = [0.0] * len(windows)
    done, total = 0, sum(len(window.targets) for window in windows)
    for batch in batches([window.length for window in windows], batch_tokens):
        for index, window_nats in zip(batch, _score(judge, [windows[i] for i in batch]), strict=True):
            nats[index] = window_nats
            done += len(windows[index].targets)
        if progress is not None:
            progress(done, total)
    return nats


@torch.inference_mode()
def _score(judge: Judge, batch: list[Window]) -> list[float]:
    """Return the nats of each window of a batch.

    Padding is on the right, where a causal model cannot see it: no attention mask is needed, and the
    fast causal attention stays in use. Log-probabilities are taken of one window's own tokens at a time.
    """
    longest = max(window.length for window in batch)
    padding = judge.prefix_token_id
    inputs_BL = torch.tensor(
        [
            [padding, *window.context, *window.targets[:-1], *[padding] * (longest - window.length)]
            for window in batch
        ]
    )
    logits_BLV = judge.model(input_ids=inputs_BL.to(judge.model.device), use_cache=False).logits
    nats = []
    for window, logits_LV in zip(batch, logits_BLV, strict=True):
        targets_N = torch.tensor(window.targets, device=logits_LV.device)
        scored_NV = logits_LV[len(window.context) : window.length].float()
        total = F.cross_entropy(scored_NV, targets_N, reduction="none").sum(dtype=torch.float64).item()
        if not math.isfinite(total):
            raise ValueError(
                f"the judge {judge.name!r} returned logits that are not finite for text {window.text}; "
                "its weights are damaged or overflow: load it again, or name another judge"
            )
        nats.append(total)
    return nats


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of `lengths` in batches of at most `batch_tokens` tokens, padding included.

    The longest come first, and a batch ends where one is shorter than `LEAST_FILLED` of its longest:
    padding costs as much as text. One is always a batch.

    Raises:
        ValueError: if `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        batch = [
            index
            for index in order[start : start + max(1, batch_tokens // longest)]
            if lengths[index] >= LEAST_FILLED * longest
        ]
        yield batch
        start += len(batch)


def window_length(judge: Judge, max_length: int | None = None) -> int:
    """Return how many tokens `judge` reads together: `max_length`, or 1024 or as many as it can.

    Raises:
        ValueError: if `max_length` is below 2 or more than it can.
    """
    limit = getattr(judge.model.config, "max_position_embeddings", None)
    if max_length is None:
        return min(MAX_LENGTH, limit or MAX_LENGTH)
    if max_length < 2 or (limit is not None and max_length > limit):
        raise ValueError(
            f"max_length is {max_length}; the judge {judge.name!r} reads between 2 and "
            f"{limit or 'any number of'} tokens at once"
        )
    return max_length
