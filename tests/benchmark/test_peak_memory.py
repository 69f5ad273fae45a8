"""Peak memory sees what work takes, and only that."""

from pathlib import Path

import pytest
import torch

from fewstep.benchmark import peak_memory
from fewstep.benchmark.peak_memory import peak_above

CPU = torch.device("cpu")
MIB = 2**20


def allocate(mebibytes: int) -> torch.Tensor:
    """Return a tensor of that size whose every page is there."""
    return torch.ones(mebibytes * MIB // 4, dtype=torch.float32)


def test_a_known_allocation() -> None:
    allocate(1)
    assert peak_above(lambda: allocate(64), CPU) == pytest.approx(64 * MIB, rel=0.1)


def test_the_peak_counts_and_not_the_sum() -> None:
    def work() -> None:
        allocate(96)
        both = allocate(32), allocate(32)
        del both

    assert peak_above(work, CPU) == pytest.approx(96 * MIB, rel=0.1)


def test_what_was_there_before_does_not_count() -> None:
    held = allocate(128)
    allocate(128)  # freed before the work begins
    assert peak_above(lambda: held.sum(), CPU) < 8 * MIB


def test_small_pieces_count_even_where_the_allocator_has_room_for_them() -> None:
    pieces = [torch.ones(2**12) for _ in range(4096)]  # 64 MiB, too small to be given back one by one
    del pieces
    taken = peak_above(lambda: [torch.ones(2**12) for _ in range(4096)], CPU)
    assert taken == pytest.approx(64 * MIB, rel=0.15)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "none")
    assert not peak_memory.can_measure(CPU)
    with pytest.raises(ValueError) as refusal:
        peak_above(lambda: None, CPU)
    assert str(refusal.value) == (
        "peak memory is measured on Linux or CUDA; run the benchmark on one of them"
    )
