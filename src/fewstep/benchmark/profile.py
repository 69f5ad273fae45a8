"""Where the time of a step goes: the network's matrix products, and everything else."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

MATRIX_PRODUCTS = (
    "aten::addmm",
    "mkldnn::_linear_pointwise",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "scaled_dot_product",
)
"""Operations that are matrix products, by how their names begin or what they contain."""
LARGEST = 8
"""How many of the other operations are named."""


def time_outside_matrix_products(work: Callable[[], object]) -> dict[str, Any]:
    """Return the share of `work`'s processor time outside matrix products, and what it is spent on.

    Attention counts as a matrix product, its softmax included.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    micros = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(micros.values())
    others = {name: time for name, time in micros.items() if not is_matrix_product(name)}
    largest = sorted(others, key=lambda name: others[name], reverse=True)[:LARGEST]
    return {
        "share_outside_matrix_products": sum(others.values()) / total,
        "largest_others": {name: others[name] / total for name in largest},
    }


def is_matrix_product(name: str) -> bool:
    """Return whether the operation `name` is a matrix product."""
    return name in MATRIX_PRODUCTS or MATRIX_PRODUCTS[-1] in name
