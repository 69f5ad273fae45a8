"""Rows that a benchmark has measured, one JSON line each, so that a run that was stopped goes on.

A row counts as measured only under the conditions of this run: other settings, another machine or
another torch measure again.
"""

import json
from pathlib import Path
from typing import Any

KEY = ("model", "batch", "steps", "cache_refresh")


class MeasuredRows:
    """Rows by model, batch, steps and cache_refresh; on disk at `path`, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.conditions: dict[str, Any] = {}
        """What else a row depends on; set it before anything is looked up."""
        self.records: list[dict[str, Any]] = []
        self.separator = ""
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            self.records = [record for line in text.splitlines() if (record := parsed(line))]
            self.separator = "" if text.endswith("\n") or not text else "\n"  # after half a line

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, on disk too."""
        record = {"conditions": self.conditions, "row": row}
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.separator + json.dumps(record) + "\n")
            self.separator = ""

    def __contains__(self, key: dict[str, Any]) -> bool:
        return self._find(key) is not None

    def row(self, **key: Any) -> dict[str, Any]:
        """Return the row of a model, batch, steps and cache_refresh."""
        row = self._find(key)
        assert row is not None, f"{key} was not measured"
        return row

    def _find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        wanted = [key[name] for name in KEY]
        for record in reversed(self.records):
            row = record["row"]
            if record["conditions"] == self.conditions and [row[name] for name in KEY] == wanted:
                return row
        return None


def parsed(line: str) -> dict[str, Any] | None:
    """Return the record of a line; None for half a line, where a run was stopped while it wrote."""
    try:
        return json.loads(line)
    except ValueError:
        return None
