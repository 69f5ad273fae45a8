"""What a pass must cost at least: its bytes against memory bandwidth, its operations against throughput.

A pass of a transformer reads every weight once, however many positions it computes, and multiplies
each weight with every position that it computes. So few positions are bound by bandwidth (one token of
an autoregressive model), and many by throughput (a full pass of a denoiser). Pure arithmetic:

    seconds of a pass = max(bytes / bandwidth, operations / throughput)

Counted: matrix products of the blocks and the head, attention, and cached keys and values. Not
counted: norms, activations, embeddings, drawing; a real pass therefore takes longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Network:
    """The sizes of a transformer that its cost depends on."""

    width: int
    num_layers: int
    vocab_size: int
    mlp_ratio: int
    bytes_per_number: int

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices: queries, keys, values, output, and both of the MLP."""
        return (4 + 2 * self.mlp_ratio) * self.width**2

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.width


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The positions of one forward pass, for each sequence of the batch."""

    computed: int
    """Positions that run through the blocks."""
    asked: int
    """Positions whose logits are needed; the last block computes no others beyond keys and values."""
    keys: int
    """Positions that each computed position attends to."""
    cached: bool
    """Whether keys and values of `keys` positions are read from a cache."""
    count: int = 1
    """How many such passes there are."""


def operations(network: Network, work: Pass, batch: int) -> int:
    """Return the floating-point operations of a pass, two for each multiplication and addition."""
    width = network.width
    last_asked = network.block_weights - 2 * width**2
    linear = (network.num_layers - 1) * network.block_weights * work.computed
    linear += 2 * width**2 * work.computed + last_asked * work.asked
    attention = 2 * width * work.keys * ((network.num_layers - 1) * work.computed + work.asked)
    return 2 * batch * (linear + attention + network.head_weights * work.asked)


def bytes_read(network: Network, work: Pass, batch: int) -> int:
    """Return the bytes that a pass reads: all weights once, and the cached keys and values."""
    weights = network.num_layers * network.block_weights + network.head_weights
    cached = 2 * network.num_layers * network.width * work.keys * batch if work.cached else 0
    return network.bytes_per_number * (weights + cached)


def roofline_seconds(network: Network, passes: Iterable[Pass], batch: int, machine: dict[str, Any]) -> float:
    """Return the least seconds of all `passes` on a machine of that `bandwidth` and `throughput`."""
    return sum(
        work.count
        * max(
            bytes_read(network, work, batch) / machine["bandwidth"],
            operations(network, work, batch) / machine["throughput"],
        )
        for work in passes
    )


def autoregressive_passes(length: int) -> list[Pass]:
    """Return the passes that write `length` tokens from nothing, one a pass, with a cache."""
    return [Pass(computed=1, asked=1, keys=held + 1, cached=True) for held in range(length)]


def diffusion_passes(length: int, num_steps: int, cache_refresh: int) -> list[Pass]:
    """Return the passes of a generation of `num_steps`: full ones, and partial ones between them.

    A partial pass computes the positions that it asks for and as many that were just written.
    """
    asked = -(-length // num_steps)
    num_full = full_passes(num_steps, cache_refresh)
    full = Pass(computed=length, asked=asked, keys=length, cached=False, count=num_full)
    partial = Pass(
        computed=min(length, 2 * asked), asked=asked, keys=length, cached=True, count=num_steps - num_full
    )
    return [full, partial]


def full_passes(num_steps: int, cache_refresh: int) -> int:
    """Return how many of `num_steps` steps make a full pass; `cache_refresh` 0 is the first alone."""
    return 1 if cache_refresh == 0 else -(-num_steps // cache_refresh)
