"""Which share of the words that models wrote are words: whether they occur in the text they learned from.

    python benchmarks/known_words.py runs/evaluation

Reads the texts that `fewstep eval --output runs/evaluation` saved. Pieces of a word that are drawn without
regard to each other make words that there are not. Ends with one line of JSON.
"""

import json
import re
import sys
from pathlib import Path

from fewstep.data.corpora import Corpus

WORD = re.compile(r"[a-z']+")
CORPUS = "sotu"


def words(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return WORD.findall(text.lower())


def shares(evaluation: Path, known: set[str]) -> list[dict[str, float | str]]:
    """Return a row for each set of samples: its settings, the share of known words, and bytes a text."""
    rows = []
    for samples in sorted((evaluation / "samples").iterdir()):
        texts = [
            text
            for batch in sorted(samples.glob("batch-*.json"))
            for text in json.loads(batch.read_text(encoding="utf-8"))["texts"]
        ]
        written = [word for text in texts for word in words(text)]
        manifest = json.loads((samples / "manifest.json").read_text(encoding="utf-8"))
        rows.append(
            {
                "samples": samples.name.rpartition("-")[0],
                "temperature": manifest["temperature"],
                "top_p": manifest["top_p"],
                "known_words": sum(word in known for word in written) / len(written),
                "bytes_per_text": sum(len(text.encode()) for text in texts) / len(texts),
            }
        )
    return rows


if __name__ == "__main__":
    vocabulary = {word for row in Corpus(source=CORPUS).documents() for word in words(row["text"])}
    found = [row for name in sys.argv[1:] for row in shares(Path(name), vocabulary)]
    for row in found:
        print(row, file=sys.stderr)
    print(json.dumps({"rows": found}))
