"""Attention and its rotary positions: over whole sequences here, over chosen rows in `row_pass`.

Shape letters: B batch, L sequence length, H heads, K width of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.models.kv_cache import KVCache

ROTARY_BASE = 10_000.0

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps queries, keys and values (..., H, K) of one block to what the queries read, (..., H, K)."""


class Rotary(NamedTuple):
    """Cosines and sines of the angles of some positions, each (..., 1, K), the same for every head."""

    cosines: Tensor
    sines: Tensor

    def of(self, chosen: Tensor) -> "Rotary":
        """Return the angles of the rows that a mask of the stream's leading shape chooses."""
        shape = (*chosen.shape, *self.cosines.shape[-2:])
        return Rotary(self.cosines.expand(shape)[chosen], self.sines.expand(shape)[chosen])


class RotaryEmbedding(nn.Module):
    """Rotary position embedding, rotating the two halves of each head (Su et al., 2021)."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def forward(self, positions: Tensor) -> Rotary:
        """Return the angles of integer `positions` (...)."""
        exponents = torch.arange(0, self.head_width, 2, device=positions.device) / self.head_width
        angles = positions[..., None, None].float() * ROTARY_BASE**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return Rotary(angles.cos(), angles.sin())


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotate `heads` (..., H, K) by the angles of their positions."""
    half = heads.shape[-1] // 2
    sines = rotary.sines.to(heads)
    rotated = heads * rotary.cosines.to(heads)
    rotated[..., :half].addcmul_(heads[..., half:], sines[..., :half], value=-1)
    rotated[..., half:].addcmul_(heads[..., :half], sines[..., half:])
    return rotated


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, causal: bool = False, real_BL: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, (B, H, L, K) each; the only entry point to it.

    With `causal`, the last query is at the last key, and each query sees no key behind its own. With
    `real_BL`, false where a sequence is padded, no other query sees the padding.
    """
    num_queries, num_keys = queries.shape[-2], keys.shape[-2]
    if real_BL is not None:
        assert num_queries == num_keys, "padding is of whole sequences"
        visible = real_BL[:, None, None, :].expand(-1, 1, num_queries, -1)
        visible = visible.tril() if causal else visible
        # Padding sees itself, since a query that sees nothing would be NaN and spoil what it is masked in.
        visible = visible | torch.eye(num_keys, dtype=torch.bool, device=queries.device)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    if not causal or num_queries == 1:
        return F.scaled_dot_product_attention(queries, keys, values)
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=queries.device)
    visible = visible.tril(num_keys - num_queries)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)


class SequenceAttention(NamedTuple):
    """Attention of whole sequences to themselves, and to what a cache holds of their beginnings."""

    causal: bool
    cache: KVCache | None
    layer: int
    real_BL: Tensor | None = None

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what queries (B, L, H, K) read."""
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if self.cache is not None:
            keys, values = self.cache.append(self.layer, keys, values)
        queries = queries.transpose(1, 2)
        return attention(queries, keys, values, self.causal, self.real_BL).transpose(1, 2)
