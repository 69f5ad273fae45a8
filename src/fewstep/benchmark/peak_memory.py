"""How much memory a piece of work takes above what is held before it.

On CUDA the allocator counts. On Linux the kernel does: writing "5" to /proc/self/clear_refs resets the
high-water mark of the process's resident memory (VmHWM), which /proc/self/status then tells.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def can_measure(device: torch.device) -> bool:
    """Return whether `peak_above` works here."""
    return device.type == "cuda" or (CLEAR_REFS.exists() and STATUS.exists())


def peak_above(work: Callable[[], object], device: torch.device) -> int:
    """Return the bytes at the peak of `work` above those held when it begins.

    Raises:
        ValueError: if the system does not tell.
    """
    if not can_measure(device):
        raise ValueError("peak memory is measured on Linux or CUDA; run the benchmark on one of them")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    return_free_memory()
    CLEAR_REFS.write_text("5")
    before = resident_bytes("VmRSS")
    work()
    return max(0, resident_bytes("VmHWM") - before)


def return_free_memory() -> None:
    """Give what the C library's allocator holds but does not use back to the system.

    Otherwise `peak_above` would not see work that is content with it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def resident_bytes(field: str) -> int:
    """Return `field` of the process's status: "VmRSS", resident now, or "VmHWM", at the peak."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{STATUS} does not tell {field}, so peak memory cannot be measured here")
