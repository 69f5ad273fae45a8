"""Tokens of a corpus that is read while training goes on, kept on disk as far as it has been read.

The tokens read so far are a file that grows at its end, with a note beside it of how many they are and
where in the source they end. A batch is a function of the training step, as it is without streaming; the
file is read on when a batch needs more. After a kill, the file is cut to what the note says and goes on
from there. The disk holds two bytes (four above 65 536 tokens of vocabulary) for each token trained on,
not the text.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from filelock import FileLock
from torch import Tensor

from fewstep.data.encoding import Encoder
from fewstep.data.token_array import ROWS_AT_ONCE

ALL_THERE_ARE = 2**62
READ_AHEAD = 2**22
"""Tokens that are read beyond those asked for, so that the source is asked seldom."""
WINDOW = 64
"""Batches whose contexts are shuffled among each other."""


class TokenStream:
    """The tokens of a stream of rows, in order.

    Several processes may share the files: one reads on, and the others find what it read.

    Args:
        rows: the stream.
        encode: rows to tokens.
        path: of the files, without suffix.
        read_ahead: tokens to read beyond those asked for.
    """

    def __init__(
        self, rows: IterableDataset, encode: Encoder, path: Path, *, read_ahead: int = READ_AHEAD
    ) -> None:
        self.rows, self.encode, self.read_ahead = rows, encode, read_ahead
        self.tokens_path = path.with_suffix(".tokens")
        self.note_path = path.with_suffix(".json")
        self.lock = FileLock(path.with_suffix(".lock"))
        self.iterator: Iterator[dict[str, Any]] | None = None
        self.iterator_is_at = -1
        self.note = self.read_note()

    def upto(self, count: int) -> np.ndarray:
        """Return the first `count` tokens or more, memory-mapped; all, if the stream has fewer.

        Raises:
            ValueError: if the stream holds no text, or breaks off.
        """
        if not self.reaches(count):
            self.tokens_path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                self.note = self.read_note()
                if not self.reaches(count):
                    self.read_on(count + self.read_ahead)
        if self.note["tokens"] == 0:
            raise ValueError("the corpus holds no text to train on; name one that has some")
        return np.memmap(self.tokens_path, self.encode.dtype, mode="r", shape=(self.note["tokens"],))

    def reaches(self, count: int) -> bool:
        """Return whether `count` tokens are known to be on disk, or all that there are."""
        return self.note["ended"] or self.note["tokens"] >= count

    def read_note(self) -> dict[str, Any]:
        """Return how many tokens are on disk, whether they are all, and the stream's state behind them."""
        if not self.note_path.exists():
            return {"tokens": 0, "ended": False, "state": None}
        return json.loads(self.note_path.read_text())

    def read_on(self, goal: int) -> None:
        """Append tokens until there are `goal` of them or the stream ends, and note it."""
        tokens, ended = self.note["tokens"], False
        if self.iterator is None or self.iterator_is_at != tokens:
            if self.note["state"] is not None:
                self.rows.load_state_dict(self.note["state"])
            self.iterator = iter(self.rows)
        itemsize = np.dtype(self.encode.dtype).itemsize
        with self.tokens_path.open("ab") as file:
            file.truncate(tokens * itemsize)
            while tokens < goal and not ended:
                rows = self.next_rows(self.iterator)
                ended = not rows
                for ids in (
                    self.encode({field: [row[field] for row in rows] for field in rows[0]}) if rows else ()
                ):
                    file.write(ids.tobytes())
                    tokens += len(ids)
            file.flush()
            os.fsync(file.fileno())
        self.note = {"tokens": tokens, "ended": ended, "state": self.rows.state_dict()}
        self.iterator_is_at = tokens
        unfinished = self.note_path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.note))
        unfinished.replace(self.note_path)

    def next_rows(self, iterator: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the next few rows of the stream."""
        try:
            return list(islice(iterator, ROWS_AT_ONCE))
        except Exception as error:  # the hub client raises many kinds
            self.iterator = None
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"the stream of the corpus broke off: {reason}; repeat the command") from error


@dataclass(frozen=True, kw_only=True)
class StreamLoader:
    """Deals out the contexts of a stream in its order, shuffled within `WINDOW` batches.

    A stream that ends begins again.

    Args:
        stream: where the tokens come from.
        context_length: L.
        batch_size: B, the sequences of one training step over all processes and micro-batches.
        seed: of the order.
    """

    stream: TokenStream
    context_length: int
    batch_size: int
    seed: int

    def batch(self, training_step: int) -> Tensor:
        """Return the sequences of a training step, (B, L) int64.

        Raises:
            ValueError: if the stream has less than one context, or breaks off.
        """
        window, place = divmod(training_step, WINDOW)
        order = np.random.default_rng([self.seed, window]).permutation(WINDOW * self.batch_size)
        numbers = window * len(order) + order[place * self.batch_size : (place + 1) * self.batch_size]
        tokens = self.stream.upto((int(numbers.max()) + 1) * self.context_length)
        contexts = len(tokens) // self.context_length
        if contexts == 0:
            raise ValueError(
                f"the stream has {len(tokens)} tokens, less than one context of {self.context_length}; "
                "name a longer one or a smaller context_length"
            )
        starts = numbers % contexts * self.context_length
        rows = np.stack([tokens[start : start + self.context_length] for start in starts])
        return torch.from_numpy(rows.astype(np.int64))
