"""One long array of tokens on disk, made piece by piece, in parallel, and memory-mapped.

A piece is the tokens of `ROWS_OF_A_PIECE` rows. Each is written beside its place and renamed, so that
after a kill the same call goes on with the pieces that are missing. Memory holds one piece a process.
Neither the size of a piece nor the number of processes has a part in what the array holds.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Process
from pathlib import Path

import numpy as np
from datasets import Dataset
from filelock import FileLock

from fewstep.data.encoding import Encoder

Chosen = range | np.ndarray
"""Numbers of rows."""
ROWS_OF_A_PIECE = 16384
ROWS_AT_ONCE = 256


def token_array(
    rows: Dataset, chosen: Chosen, encode: Encoder, path: Path, *, num_proc: int = 1
) -> np.ndarray:
    """Return the tokens of the `chosen` rows in their order, from the file `path`, made if it is not there.

    Several processes may ask for the same file: one makes it, and the others wait.

    Args:
        num_proc: Processes that tokenize.

    Raises:
        ValueError: if the rows hold no text.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, pieces = path.with_suffix(".lock"), path.with_suffix(".pieces")
        with FileLock(lock):
            if not path.exists():
                pieces.mkdir(exist_ok=True)
                make_pieces(rows, chosen, encode, pieces, num_proc)
                join(sorted(pieces.glob("*.npy")), path, encode)
                shutil.rmtree(pieces)
        lock.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def make_pieces(rows: Dataset, chosen: Chosen, encode: Encoder, directory: Path, num_proc: int) -> None:
    """Write every piece that is missing in `directory`.

    Each process has its share from the start and no queue to wait at, so that those of a killed run end.
    """
    count = -(-len(chosen) // ROWS_OF_A_PIECE)
    places = {number: directory / f"{number:08d}.npy" for number in range(count)}
    missing = [number for number, place in places.items() if not place.exists()]
    make = partial(make_share, rows, chosen, encode, places)
    workers = min(num_proc, len(missing))
    if workers > 1:
        shares = [missing[first::workers] for first in range(workers)]
        processes = [Process(target=make_share_apart, args=(make, share)) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    make([number for number in missing if not places[number].exists()])


def make_share(
    rows: Dataset, chosen: Chosen, encode: Encoder, places: dict[int, Path], numbers: list[int]
) -> None:
    """Write the pieces of these `numbers`."""
    for number in numbers:
        part = chosen[number * ROWS_OF_A_PIECE : (number + 1) * ROWS_OF_A_PIECE]
        make_piece(rows, encode, part, places[number])


def make_share_apart(make: Callable[[list[int]], None], numbers: list[int]) -> None:
    """Make a share in a process of its own, with one thread, up to an error.

    The process that waits then makes what is missing, and meets the same error.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with suppress(Exception):
        make(numbers)


def make_piece(rows: Dataset, encode: Encoder, chosen: Chosen, place: Path) -> None:
    """Write the tokens of the `chosen` rows to `place`."""
    tokens = [np.zeros(0, dtype=encode.dtype)]
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        tokens += encode(rows[chosen[start : start + ROWS_AT_ONCE]])
    unfinished = place.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        np.save(file, np.concatenate(tokens))
    unfinished.replace(place)


def join(pieces: list[Path], path: Path, encode: Encoder) -> None:
    """Write `pieces` one after another as one array to `path`."""
    total = sum(len(np.load(piece, mmap_mode="r")) for piece in pieces)
    if total == 0:
        raise ValueError("the corpus holds no text to train on; name one that has some")
    unfinished = path.with_suffix(".unfinished")
    joined = np.lib.format.open_memmap(unfinished, mode="w+", dtype=encode.dtype, shape=(total,))
    end = 0
    for piece in pieces:
        tokens = np.load(piece)
        joined[end : end + len(tokens)] = tokens
        end += len(tokens)
    joined.flush()
    unfinished.replace(path)
