"""A denoiser's pass for chosen rows alone: exact without a cache, approximate and cheap with one.

Without a cache every position of a sequence that asks is computed, but the last block's queries,
attention output and MLP only where a hidden row is asked for. With a cache, a pass computes only the
rows asked for and those whose token has changed since their keys and values were kept; all others
keep what an earlier pass computed of them, which a full pass would have changed a little. Sequences
that are equal throughout, as all are that begin with masks alone, are computed once.

Shape letters: A sequences that ask for rows, S sequences computed for them, N rows chosen.
"""

from functools import partial

import torch
from torch import Tensor

from fewstep.models.attention import attention
from fewstep.models.transformer import Transformer


class DenoiserCache:
    """Keys and values of every block and position, (B, H, L, K) each, and the tokens they belong to.

    Args:
        first_position: the position in the text of the first of the L slots.
    """

    NEVER = -1

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        length: int,
        num_heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, batch, num_heads, length, head_width)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.tokens_BL = torch.full((batch, length), self.NEVER, device=device)
        self.first_position = 0
        self.positions_computed = 0
        """Rows computed in all passes so far, of all sequences."""

    def forget(self) -> None:
        """Make the next pass of each sequence a full one."""
        self.tokens_BL.fill_(self.NEVER)

    def slide(self, count: int) -> None:
        """Drop the first `count` slots and append as many empty ones."""
        self.storage[..., :-count, :] = self.storage[..., count:, :].clone()
        self.tokens_BL = torch.cat(
            [self.tokens_BL[:, count:], torch.full_like(self.tokens_BL[:, :count], self.NEVER)], dim=1
        )
        self.first_position += count


class ChosenRows:
    """Rows (N, ...) chosen of a batch by a mask (B, L), and the same padded to (B, widest, ...)."""

    def __init__(self, chosen_BL: Tensor) -> None:
        self.sequences_N, self.positions_N = chosen_BL.nonzero(as_tuple=True)
        counts_B = chosen_BL.sum(1)
        before_B = counts_B.cumsum(0) - counts_B
        self.batch, self.widest = len(chosen_BL), int(counts_B.max())
        self.places_N = torch.arange(len(self.sequences_N), device=chosen_BL.device)
        self.places_N -= before_B[self.sequences_N]

    def padded(self, rows: Tensor) -> Tensor:
        """Return rows (N, ...) as (B, widest, ...), zero where a sequence has fewer."""
        if self.batch == 1:
            return rows[None]
        padded = rows.new_zeros(self.batch, self.widest, *rows.shape[1:])
        padded[self.sequences_N, self.places_N] = rows
        return padded

    def flat(self, padded: Tensor) -> Tensor:
        """Return padded rows (B, widest, ...) as (N, ...)."""
        return padded[0] if self.batch == 1 else padded[self.sequences_N, self.places_N]


class RowPass:
    """One pass: which sequences take part, which of their rows are computed, and which are asked for."""

    def __init__(self, tokens_BL: Tensor, asked_BL: Tensor, cache: DenoiserCache | None) -> None:
        self.cache = cache
        self.active_A = asked_BL.any(1).nonzero()[:, 0]
        self.all_active = len(self.active_A) == len(asked_BL)
        self.tokens_AL, self.asked_AL = tokens_BL[self.active_A], asked_BL[self.active_A]
        self.computed: ChosenRows | None = None
        """The rows computed; None if they are all rows of the sequences that take part."""
        if cache is not None:
            self.computed_AL = self.asked_AL | (self.tokens_AL != cache.tokens_BL[self.active_A])
            cache.tokens_BL[self.active_A] = self.tokens_AL
            cache.positions_computed += int(self.computed_AL.sum())
            if not self.computed_AL.all():
                self.computed = ChosenRows(self.computed_AL)
        self.alike = self.computed is None and self.all_equal()
        """Whether one sequence is computed for all, as when all begin with nothing but masks."""
        self.tokens_SL, self.asked_SL = self.tokens_AL, self.asked_AL
        if self.alike:
            self.tokens_SL, self.asked_SL = self.tokens_AL[:1], self.asked_AL.any(0, keepdim=True)
        self.asked = ChosenRows(self.asked_SL)

    def all_equal(self) -> bool:
        """Return whether several sequences have the same tokens, so that their rows are the same."""
        if len(self.tokens_AL) == 1 or torch.is_grad_enabled():
            return False
        return bool((self.tokens_AL == self.tokens_AL[:1]).all())

    def hidden(self, transformer: Transformer) -> Tensor:
        """Return the hidden rows (N, D) asked for."""
        self.last = len(transformer.blocks) - 1
        attends = [partial(self.attend, layer) for layer in range(len(transformer.blocks))]
        if self.computed is None:
            tokens, asked = self.tokens_SL, self.asked_SL
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        else:
            tokens, asked = self.tokens_AL[self.computed_AL], self.asked_AL[self.computed_AL]
            positions = self.computed.positions_N
        if self.cache is not None:
            positions = positions + self.cache.first_position
        rows = transformer.run(transformer.vocab_embed(tokens), positions, attends, asked)
        if not self.alike:
            return rows
        place_L = asked[0].cumsum(0) - 1
        return rows[place_L[self.asked_AL.nonzero()[:, 1]]]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what queries, (A, L, H, K) or rows (..., H, K) of them, read in block number `layer`."""
        keys, values = self.keys_and_values(layer, keys, values)
        rows = self.asked if layer == self.last else self.computed
        if rows is None:
            return attention(queries.transpose(1, 2), keys, values).transpose(1, 2)
        return rows.flat(attention(rows.padded(queries).transpose(1, 2), keys, values).transpose(1, 2))

    def keys_and_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (A, H, L, K) of all positions, and keep the new ones."""
        if self.computed is None:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if self.cache is None:
            return keys, values
        kept = self.cache.storage[layer]
        for held, new in zip(kept, (keys, values), strict=True):
            if self.computed is None:
                held[self.active_A] = new
            else:
                held[self.active_A[self.computed.sequences_N], :, self.computed.positions_N] = new
        if self.computed is None:
            return keys, values
        held_keys, held_values = kept if self.all_active else kept[:, self.active_A]
        return held_keys, held_values
