"""Several processes that share work through files, as `accelerate launch` and `torchrun` start them.

The launcher tells each its number by environment variables. Nothing is sent between them: what one has
finished is a file in a directory that all of them see, and the launcher ends all of them if one fails.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Share:
    """Which of the processes this is; work number n belongs to process n modulo `num_processes`."""

    process: int = 0
    num_processes: int = 1

    def is_mine(self, number: int) -> bool:
        """Return whether this process does work `number`."""
        return number % self.num_processes == self.process


def launched_share() -> Share:
    """Return what the launcher says of this process; the only one, if none launched it."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def launched_device(device: str) -> str:
    """Return `device`, where "auto" on a machine of several GPUs is this process's own."""
    import torch

    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def wait_for(path: Path) -> None:
    """Return once another process has finished the file `path`."""
    while not path.exists():
        time.sleep(SECONDS_BETWEEN_LOOKS)
