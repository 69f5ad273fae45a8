"""Batches of packed tokens as a pure function of the seed and the training step.

Nothing has to be saved to resume: batch number n is the same whoever asks for it and whenever.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Loader(Protocol):
    """Deals out the sequences of each training step."""

    @property
    def context_length(self) -> int: ...
    def batch(self, training_step: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TokenLoader:
    """Cuts an array of tokens into contexts and deals them out in a new random order each epoch.

    Each epoch cuts at another offset, so that a document's words meet other neighbours.

    Args:
        tokens: the packed tokens, (number of tokens,).
        context_length: L.
        batch_size: B, the sequences of one training step over all processes and micro-batches.
        seed: of the order and the offsets.
    """

    tokens: np.ndarray
    context_length: int
    batch_size: int
    seed: int

    @property
    def contexts_per_epoch(self) -> int:
        return (len(self.tokens) - self.context_length) // self.context_length or 1

    def batch(self, training_step: int) -> Tensor:
        """Return the sequences of a training step, (B, L) int64."""
        first = training_step * self.batch_size
        numbers = range(first, first + self.batch_size)
        epochs = {number // self.contexts_per_epoch for number in numbers}
        cuts = {epoch: self._epoch(epoch) for epoch in epochs}
        rows = []
        for number in numbers:
            epoch, place = divmod(number, self.contexts_per_epoch)
            offset, order = cuts[epoch]
            start = offset + int(order[place]) * self.context_length
            rows.append(self.tokens[start : start + self.context_length])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """Return where the cuts of an epoch begin, and the order of its contexts."""
        generator = np.random.default_rng([self.seed, epoch])
        spare = len(self.tokens) - self.contexts_per_epoch * self.context_length
        offset = int(generator.integers(min(spare, self.context_length - 1) + 1))
        return offset, generator.permutation(self.contexts_per_epoch)


def validation_batch(tokens: np.ndarray, *, context_length: int, max_contexts: int) -> Tensor:
    """Return up to `max_contexts` contexts spread evenly over `tokens`, (contexts, L) int64."""
    available = len(tokens) // context_length
    chosen = np.linspace(0, available - 1, min(max_contexts, available)).round().astype(int)
    rows = np.stack([tokens[i * context_length : (i + 1) * context_length] for i in chosen])
    return torch.from_numpy(rows.astype(np.int64))
