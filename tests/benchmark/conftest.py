"""A shape that benchmarks run in a moment, and a machine that is measured in one."""

import pytest

from fewstep.benchmark import machine, networks
from fewstep.models.config import SHAPES

NANO = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a shape of 29 tokens, width 16, two blocks and a context of 32."""
    monkeypatch.setitem(SHAPES, "nano", NANO)
    monkeypatch.setattr(machine, "TRAFFIC_BYTES", 2**20)
    monkeypatch.setattr(machine, "MATRIX_SIDE", 64)
    networks.num_parameters.cache_clear()
    return "nano"


def ignore(line: str) -> None:
    """Take a line of progress."""
