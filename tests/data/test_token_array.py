"""Tokens made in pieces: the same whatever the pieces, the processes and the kills."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from fewstep.data import token_array
from fewstep.data.encoding import Columns, DocumentEncoder


@dataclass(frozen=True)
class Bytes:
    """Each text's bytes and a 0; a text "stop" ends the process or raises, unless `stops` is none."""

    log: Path
    stops: str = ""
    dtype = np.uint16
    key = "bytes"

    def __call__(self, columns: Columns) -> list[np.ndarray]:
        with self.log.open("a") as file:
            file.writelines(f"{text}\n" for text in columns["text"])
        if "stop" in columns["text"] and self.stops == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if "stop" in columns["text"] and self.stops == "raise":
            raise KeyboardInterrupt
        return [np.array([*text.encode(), 0], dtype=np.uint16) for text in columns["text"]]


TEXTS = [*(f"text {i}" for i in range(17)), "stop", "a", "b"]
ROWS = datasets.Dataset.from_dict({"text": TEXTS})


def expected(texts: list[str]) -> list[int]:
    return [token for text in texts for token in (*text.encode(), 0)]


def make(tmp_path: Path, stops: str = "", chosen: token_array.Chosen = range(20)) -> np.ndarray:
    encode = Bytes(tmp_path / "log", stops)
    return token_array.token_array(ROWS, chosen, encode, tmp_path / "tokens.npy")


def make_and_die(tmp_path: Path) -> None:
    token_array.ROWS_OF_A_PIECE = 4
    make(tmp_path, "kill")


@pytest.mark.parametrize("rows_of_a_piece", [1, 3, 20, 100])
@pytest.mark.parametrize("rows_at_once", [1, 2, 256])
def test_pieces_have_no_part_in_the_result(
    rows_of_a_piece: int, rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", rows_of_a_piece)
    monkeypatch.setattr(token_array, "ROWS_AT_ONCE", rows_at_once)
    assert make(tmp_path).tolist() == expected(TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "tokens.npy"]
    assert (tmp_path / "log").read_text().splitlines() == TEXTS, "each row is tokenized once"


def test_chosen_rows_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", 2)
    assert make(tmp_path, chosen=np.array([7, 2, 19])).tolist() == expected(["text 7", "text 2", "b"])
    (tmp_path / "tokens.npy").unlink()
    assert make(tmp_path, chosen=range(17, 20)).tolist() == expected(["stop", "a", "b"])


def test_a_second_call_reads_the_file(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "log").unlink()
    assert make(tmp_path, "raise").tolist() == expected(TEXTS)
    assert not (tmp_path / "log").exists()


def test_stopped_tokenization_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", 4)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "raise")
    assert not (tmp_path / "tokens.npy").exists()
    (tmp_path / "log").unlink()
    assert make(tmp_path).tolist() == expected(TEXTS)
    assert (tmp_path / "log").read_text().splitlines() == TEXTS[16:]


def test_killed_tokenization_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a real process, which holds the lock, in its fifth piece."""
    process = multiprocessing.get_context("fork").Process(target=make_and_die, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", 4)
    (tmp_path / "log").unlink()
    assert make(tmp_path).tolist() == expected(TEXTS)
    assert (tmp_path / "log").read_text().splitlines() == TEXTS[16:]


def test_processes_have_no_part_in_the_result(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", 30)
    rows = datasets.Dataset.from_dict({"text": [f"Document {i} of a free people." for i in range(100)]})
    encode = DocumentEncoder(tokenizer=tokenizer, text_field="text")
    one = token_array.token_array(rows, range(100), encode, tmp_path / "one.npy")
    two = token_array.token_array(rows, range(100), encode, tmp_path / "two.npy", num_proc=2)
    assert two.tolist() == one.tolist()
    assert (one == tokenizer.eos_token_id).sum() == 100


def test_an_error_of_another_process_is_met_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_array, "ROWS_OF_A_PIECE", 4)
    wrong = datasets.Dataset.from_dict({"text": [*TEXTS[:16], None, "a"]})
    encode = Bytes(tmp_path / "log")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'encode'"):
        token_array.token_array(wrong, range(18), encode, tmp_path / "tokens.npy", num_proc=2)
    assert not (tmp_path / "tokens.npy").exists()


def test_rows_without_text_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = datasets.Dataset.from_dict({"text": ["", None, "  \n"]})
    encode = DocumentEncoder(tokenizer=tokenizer, text_field="text")
    with pytest.raises(ValueError, match="holds no text"):
        token_array.token_array(rows, range(3), encode, tmp_path / "none.npy")
