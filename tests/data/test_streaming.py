"""Streams: the tokens of the whole corpus, as far as they are needed, whoever reads and stops."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data import streaming
from fewstep.data.corpora import Corpus
from fewstep.data.encoding import Columns, DocumentEncoder
from fewstep.data.packing import tokenize_corpus
from fewstep.data.streaming import ALL_THERE_ARE, StreamLoader, TokenStream

TEXTS = [f"Document number {i} of a free people, {'and more ' * (i % 5)}" for i in range(90)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Three files of thirty documents each, and a blank one."""
    (tmp_path / "corpus").mkdir()
    for file in range(3):
        texts = [*TEXTS[30 * file : 30 * file + 30], " "]
        lines = [json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)]
        (tmp_path / "corpus" / f"part_{file}.jsonl").write_text("".join(lines))
    return Corpus(source=str(tmp_path / "corpus"), streaming=True)


@pytest.fixture(autouse=True)
def _few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "ROWS_AT_ONCE", 4)


@dataclass
class Counting:
    """An encoder that notes what it encodes and can fail."""

    inner: DocumentEncoder
    texts: list[str] = field(default_factory=list)
    fail_at: int = -1

    @property
    def dtype(self) -> type[np.integer]:
        return self.inner.dtype

    @property
    def key(self) -> str:
        return self.inner.key

    def __call__(self, columns: Columns) -> list[np.ndarray]:
        self.texts += columns["text"]
        if 0 <= self.fail_at <= len(self.texts):
            raise KeyboardInterrupt
        return self.inner(columns)


def encoder(tokenizer: PreTrainedTokenizerBase, fail_at: int = -1) -> Counting:
    return Counting(DocumentEncoder(tokenizer=tokenizer, text_field="text"), fail_at=fail_at)


def tokens_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [token for row in ids for token in (*row, tokenizer.eos_token_id)]


def test_tokens_are_those_of_the_documents(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    stream = TokenStream(corpus.stream(), encoder(tokenizer), tmp_path / "s", read_ahead=0)
    expected = tokens_of(TEXTS, tokenizer)
    for count in (1, 50, 51, 700, ALL_THERE_ARE):
        tokens = stream.upto(count)
        assert len(tokens) >= min(count, len(expected))
        assert tokens.tolist() == expected[: len(tokens)]
    assert len(stream.upto(1)) == len(expected)


def test_no_more_is_read_than_needed(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    counting = encoder(tokenizer)
    TokenStream(corpus.stream(), counting, tmp_path / "s", read_ahead=0).upto(1)
    assert counting.texts == TEXTS[:4]


@pytest.mark.parametrize("fail_at", [4, 16, 31, 60])
def test_a_stopped_stream_goes_on_where_its_note_says(
    fail_at: int, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Each time all objects are new, as after a kill; rows before the note are not tokenized again."""
    failing = encoder(tokenizer, fail_at)
    stream = TokenStream(corpus.stream(), failing, tmp_path / "s", read_ahead=0)
    with pytest.raises(KeyboardInterrupt):
        deque(map(stream.upto, range(1, 10_000, 150)))
    noted = stream.note["tokens"]
    with (tmp_path / "s.tokens").open("ab") as file:
        file.write(b"half of a tok")
    counting = encoder(tokenizer)
    again = TokenStream(corpus.stream(), counting, tmp_path / "s", read_ahead=0)
    expected = tokens_of(TEXTS, tokenizer)
    assert again.upto(ALL_THERE_ARE).tolist() == expected
    repeated = tokens_of([text for text in counting.texts if text.strip()], tokenizer)
    assert repeated == expected[noted:]


def test_processes_that_share_a_stream_read_it_once(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Two readers of the same files take turns, as the processes of one machine do."""
    encoders = [encoder(tokenizer), encoder(tokenizer)]
    readers = [TokenStream(corpus.stream(), encode, tmp_path / "s", read_ahead=100) for encode in encoders]
    expected = tokens_of(TEXTS, tokenizer)
    for turn, count in enumerate((10, 200, 650, 660, 1300, ALL_THERE_ARE)):
        for reader in (readers[turn % 2], readers[1 - turn % 2]):
            tokens = reader.upto(count)
            assert tokens.tolist() == expected[: len(tokens)] and len(tokens) >= min(count, len(expected))
    read = [text for encode in encoders for text in encode.texts if text.strip()]
    assert sorted(read) == sorted(TEXTS)
    assert all(encode.texts for encode in encoders)


def test_batches_are_a_function_of_the_training_step(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole epochs deal every context, shuffled within a window; a fresh loader deals the same."""
    monkeypatch.setattr(streaming, "WINDOW", 5)

    def loader(name: str) -> StreamLoader:
        stream = TokenStream(corpus.stream(), encoder(tokenizer), tmp_path / name, read_ahead=0)
        return StreamLoader(stream=stream, context_length=8, batch_size=3, seed=1)

    expected = tokens_of(TEXTS, tokenizer)
    contexts = len(expected) // 8
    forwards = loader("a")
    batches = [forwards.batch(step) for step in range(2 * contexts // 3)]
    for step in (0, 7, len(batches) - 1, 3):
        assert torch.equal(loader("b").batch(step), batches[step])
    rows = torch.cat(batches)[: contexts // 15 * 15].tolist()
    for window in range(contexts // 15):
        cut = [expected[8 * i : 8 * i + 8] for i in range(15 * window, 15 * window + 15)]
        dealt = rows[15 * window : 15 * window + 15]
        assert sorted(dealt) == sorted(cut) and dealt != cut


def test_first_documents_are_held_out(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    split = tokenize_corpus(corpus, tokenizer, held_out_documents=40, context_length=8)
    assert isinstance(split.training, TokenStream) and isinstance(split.validation, np.ndarray)
    first_rows = [*TEXTS[:30], *TEXTS[30:39]]  # and the blank row at the end of the first file
    assert split.validation.tolist() == tokens_of(first_rows, tokenizer)
    assert split.training.upto(ALL_THERE_ARE).tolist() == tokens_of(TEXTS[39:], tokenizer)


def test_settings_that_do_not_fit_are_refused(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="set held_out_documents"):
        tokenize_corpus(corpus, tokenizer, context_length=8)
    with pytest.raises(ValueError, match="read whole; leave out its streaming"):
        tokenize_corpus(corpus, tokenizer, validation_corpus=corpus, context_length=8)


def test_a_stream_too_short_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    corpus = Corpus(source=str(tmp_path / "a.jsonl"), streaming=True)
    split = tokenize_corpus(corpus, tokenizer, held_out_documents=1, context_length=2)
    with pytest.raises(ValueError, match="has 2 tokens, less than one context of 4"):
        split.loader(context_length=4, batch_size=1, seed=0).batch(0)
    (tmp_path / "b.jsonl").write_text('{"text": " "}\n')
    blank = TokenStream(
        Corpus(source=str(tmp_path / "b.jsonl")).stream(), encoder(tokenizer), tmp_path / "blank"
    )
    with pytest.raises(ValueError, match="holds no text"):
        blank.upto(1)
