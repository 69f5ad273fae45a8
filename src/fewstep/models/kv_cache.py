"""Keys and values of the positions that an autoregressive model has already read."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer, each (B, H, capacity, K).

    `length` counts the positions that all layers hold; the model advances it once a pass.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        num_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, batch, num_heads, capacity, head_width)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `keys` and `values` (B, H, L, K) behind the held ones; return all up to them."""
        end = self.length + keys.shape[2]
        capacity = self.storage.shape[4]
        assert end <= capacity, f"{end} positions in a cache of {capacity}"
        held_keys, held_values = self.storage[layer]
        held_keys[:, :, self.length : end] = keys
        held_values[:, :, self.length : end] = values
        return held_keys[:, :, :end], held_values[:, :, :end]
