"""The machine that a benchmark ran on: what it is, what it can do, and what memory it has left.

Memory bandwidth and matrix throughput are measured here, because roofline estimates need those that
this process can reach, not those that a data sheet promises.
"""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fewstep.benchmark.timing import in_turn, timed

TRAFFIC_BYTES = 2**28
"""Bytes of the buffer that is read and copied: more than any processor cache holds."""
CUDA_TRAFFIC_BYTES = 2**31
MATRIX_SIDE = 2048
CUDA_MATRIX_SIDE = 8192
REPEATS = 3
VERSIONS = ("fewstep", "torch", "transformers", "numpy")


def checked_device(name: str) -> torch.device:
    """Return the device `name`.

    Raises:
        ValueError: if it is no device that can be timed, or is not there.
    """
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; benchmarks run on cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, and this torch finds no CUDA device; choose cpu")
    return torch.device(name)


def precision(device: torch.device) -> torch.dtype:
    """Return what networks compute in: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def describe(device: torch.device, *, measured: bool = True) -> dict[str, Any]:
    """Return hardware, versions and threads, and, if `measured`, bandwidth and throughput.

    `bandwidth` is in bytes a second, `throughput` in floating-point operations a second.
    """
    found: dict[str, Any] = {
        "device": device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "precision": str(precision(device)).removeprefix("torch."),
        **{name: version(name) for name in VERSIONS},
    }
    if measured:
        found |= {"bandwidth": memory_bandwidth(device), "throughput": matrix_throughput(device)}
    return found


def processor_name() -> str:
    """Return the name of the processor, as Linux tells it; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_bandwidth(device: torch.device) -> float:
    """Return bytes a second that a large copy moves, or a large read, whichever is more.

    Both are a fastest run of several: what the machine can do when nothing else disturbs it.
    """
    size = CUDA_TRAFFIC_BYTES if device.type == "cuda" else TRAFFIC_BYTES
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = timed("copy", lambda: target.copy_(source), device)
    read = timed("read", lambda: source.sum(), device)
    timings = in_turn([copy, read], repeats=REPEATS, warm_up=[copy, read])
    return max(2 * size / min(timings["copy"].seconds), size / min(timings["read"].seconds))


def matrix_throughput(device: torch.device) -> float:
    """Return floating-point operations a second of a large square matrix product at `precision`."""
    side = CUDA_MATRIX_SIDE if device.type == "cuda" else MATRIX_SIDE
    left, right = (torch.ones(side, side, dtype=precision(device), device=device) for _ in range(2))
    product = timed("product", lambda: left @ right, device)
    timings = in_turn([product], repeats=REPEATS, warm_up=[product])
    return 2 * side**3 / min(timings["product"].seconds)


def available_bytes(device: torch.device) -> int | None:
    """Return how much memory can still be taken on `device`; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    (line,) = [line for line in lines if line.startswith("MemAvailable:")] or [""]
    return int(line.split()[1]) * 1024 if line else None
