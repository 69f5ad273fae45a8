"""Functions run in two real processes that share a gloo group, as a launcher would start them."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SECONDS = 300


def start(function: Callable[..., Any], *arguments: Any) -> list[ForkServerProcess]:
    """Start `function(rank, *arguments)` as the processes 0 and 1 of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fewstep.training.train", "fewstep.training.distill", "fewstep.cli.main"])
    processes = [
        context.Process(target=in_group, args=(rank, port, function, arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    return processes


def in_group(rank: int, port: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )  # fmt: skip
    function(rank, *arguments)


def exit_codes(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait for the end of both and return their exit codes."""
    for process in processes:
        process.join(SECONDS)
    return [process.exitcode for process in processes]


def command(rank: int, directory: Path, *commands: list[str]) -> None:
    """Run `fewstep` with the command of this process; it writes to `directory`/written.RANK
    and says what went wrong in `directory`/said.RANK."""
    from fewstep.cli.main import main

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"said.{rank}").open("w") as said, (directory / f"written.{rank}").open("w") as written:
        sys.stderr, sys.stdout = said, written
        code = main(commands[rank % len(commands)])
    sys.exit(code)
