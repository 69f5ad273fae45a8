"""The settings of a run, saved beside its weights so that `--config` can repeat or continue it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

SETTINGS = "config.yaml"


def save_settings(run_directory: Path, settings: Mapping[str, Any]) -> None:
    """Write all arguments of a command, dataclasses as dictionaries, to `run_directory`/config.yaml."""
    plain = json.loads(json.dumps(dict(settings)))  # YAML has no tuples
    unfinished = run_directory / f"{SETTINGS}.unfinished"
    unfinished.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    unfinished.replace(run_directory / SETTINGS)
