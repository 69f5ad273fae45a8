"""Prompts with responses: one pair a sequence, of which only the response is learned.

A pair is its prompt, its response, a separator, and more separators up to the context length. All
sequences are equally long and begin at position 0, so no padding is hidden and none needs to be: what a
pair contributes is a function of that pair alone, whatever prompts stand beside it in the batch.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("fewstep")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs one after another.

    Args:
        tokens: (number of tokens,), prompts as complements: see `encoding`. A pair begins where a given
            token follows a learned one.
        separator: its id.
        learn_fill: whether the separators behind the first are learned, too. A denoiser fills the whole
            canvas that it is given and needs them (as in Nie et al., 2025, "Large Language Diffusion
            Models", section 2.3); an autoregressive model is done at the first.
    """

    tokens: np.ndarray
    separator: int
    learn_fill: bool

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each pair begins, and where the last ends, (pairs + 1,)."""
        given = np.concatenate([[False], self.tokens < 0])
        return np.append(np.flatnonzero(given[1:] & ~given[:-1]), len(self.tokens))

    def fitting(self, context_length: int) -> np.ndarray:
        """Return the numbers of the pairs that fit into a context.

        Raises:
            ValueError: if none does.
        """
        fits = np.flatnonzero(np.diff(self.starts) <= context_length)
        count = len(self.starts) - 1
        if len(fits) == 0:
            raise ValueError(
                f"none of {count} pairs of prompt and response fits into a context of {context_length} "
                "tokens; raise context_length"
            )
        if len(fits) < count:
            logger.warning(
                "%d of %d pairs are longer than the context of %d tokens and left out",
                count - len(fits),
                count,
                context_length,
            )
        return fits

    def rows(self, numbers: np.ndarray, context_length: int) -> Tensor:
        """Return pairs as sequences, (pairs, L) int64."""
        fill = self.separator if self.learn_fill else ~self.separator
        rows = np.full((len(numbers), context_length), fill, dtype=np.int64)
        for row, number in zip(rows, numbers, strict=True):
            start, end = self.starts[number : number + 2]
            row[: end - start] = self.tokens[start:end]
        return torch.from_numpy(rows)

    def spread(self, context_length: int, max_contexts: int) -> Tensor:
        """Return up to `max_contexts` pairs spread evenly, (contexts, L) int64."""
        fits = self.fitting(context_length)
        places = np.linspace(0, len(fits) - 1, min(max_contexts, len(fits))).round().astype(int)
        return self.rows(fits[places], context_length)


@dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Deals out pairs in a new random order each epoch; a batch is a function of the training step.

    Args:
        pairs: those to deal out; what does not fit is left out.
        context_length: L.
        batch_size: B, the sequences of one training step over all processes and micro-batches.
        seed: of the order.
    """

    pairs: Pairs
    context_length: int
    batch_size: int
    seed: int

    @cached_property
    def numbers(self) -> np.ndarray:
        return self.pairs.fitting(self.context_length)

    def batch(self, training_step: int) -> Tensor:
        """Return the sequences of a training step, (B, L) int64."""
        first = training_step * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), len(self.numbers))
        orders = {
            int(epoch): np.random.default_rng([self.seed, int(epoch)]).permutation(self.numbers)
            for epoch in set(epochs.tolist())
        }
        dealt = [orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]
        return self.pairs.rows(np.array(dealt), self.context_length)
