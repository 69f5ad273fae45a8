"""What the processes of one run must have in common, and what happens when one of them is lost."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object

LOST = ("gloo/transport", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What the error of a collective says when a process it needs is gone."""


def check_launcher(precision: str) -> None:
    """Raise ValueError if the launcher asks for what only settings of the run decide."""
    refused = {
        "ACCELERATE_USE_FSDP": ("true", "set loop.sharding to full"),
        "ACCELERATE_USE_DEEPSPEED": ("true", "set loop.sharding to full"),
        "ACCELERATE_USE_MEGATRON_LM": ("true", "set loop.sharding to full"),
    }
    for variable, (value, instead) in refused.items():
        if os.environ.get(variable) == value:
            raise ValueError(f"{variable} is {value}, which this run would ignore; unset it and {instead}")
    accumulated = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulated not in ("1", "auto"):
        raise ValueError(
            f"accelerate is to accumulate {accumulated} gradients, and a run decides that by its batch; "
            "leave it at 1 and set loop.micro_batch_size"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", {"bfloat16": "bf16"}.get(precision)):
        raise ValueError(
            f"accelerate is to use mixed precision {launched} and loop.precision is {precision}; "
            "leave mixed precision to loop.precision"
        )


def several_without_gpu() -> bool:
    """Return whether a launcher started several processes where there is no GPU.

    Accelerate must be told that they are to meet: it would take each for the only one.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def check_same(settings: Mapping[str, Any]) -> None:
    """Raise ValueError, in every process, if `settings` are not the same in all of them."""
    every = gather_object([dict(flat(settings))])
    for process, others in enumerate(every):
        for key in sorted(every[0].keys() | others.keys()):
            mine, other = every[0].get(key), others.get(key)
            if mine != other:
                raise ValueError(
                    f"{key} is {mine!r} in process 0 and {other!r} in process {process}; "
                    "start all processes with the same settings"
                )


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings with the keys of nested ones joined by dots."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def losses_of_processes(num_processes: int) -> Iterator[None]:
    """Raise OSError in one line where another process of the run is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if num_processes == 1 or not (isinstance(error, dist.DistError) or any(x in reason for x in LOST)):
            raise
        raise ConnectionError(
            "another process of the run has ended or no longer answers; what was saved remains; "
            "the same command continues"
        ) from error
