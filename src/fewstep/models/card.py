"""The model card of a checkpoint: a README.md for people and for the hub, made from its manifest."""

import json
from pathlib import Path
from typing import Any

MODEL_CARD = "README.md"
HEADER = """---
library_name: fewstep
pipeline_tag: {task}
tags:
{tags}
---
"""
USAGE = """## Use

```python
import fewstep

model = fewstep.load("{name}")  # or the repository that this card is in
print(model.generate(seed=0).texts[0])
```
"""
NOT_MEASURED = {"round_index", "num_steps", "delta", "tokens_seen"}
"""Numbers of a manifest that say how a model was made, not how good it is."""


def model_card_of(directory: Path) -> str:
    """Return the model card of a checkpoint directory, from its manifest and its configuration."""
    manifest = directory / "manifest.json"
    about = json.loads(manifest.read_text()) if manifest.is_file() else {}
    return model_card(directory.name, about, json.loads((directory / "config.json").read_text()))


def model_card(name: str, manifest: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the Markdown of a model card: what the model is, how it was made, what was measured.

    Args:
        name: what `fewstep.load` is shown with.
        manifest, config: the contents of manifest.json and config.json.
    """
    denoiser = config.get("model_type") != "fewstep-autoregressive"
    tags = ["fewstep", "masked-diffusion" if denoiser else "autoregressive"]
    if "round_index" in manifest:
        tags.append("sdtt")
    header = HEADER.format(
        task="fill-mask" if denoiser else "text-generation", tags="\n".join(f"- {tag}" for tag in tags)
    )
    parts = [header, f"# {name}\n", _what_it_is(manifest, denoiser)]
    for title, rows in (("Making", _making(manifest, config)), ("Measured", _measured(manifest))):
        if rows:
            table = "\n".join(f"| {key} | {value} |" for key, value in rows)
            parts.append(f"## {title}\n\n| what | value |\n| --- | --- |\n{table}\n")
    return "\n".join([*parts, USAGE.format(name=name)])


def _what_it_is(manifest: dict[str, Any], denoiser: bool) -> str:
    if not denoiser:
        return "An autoregressive language model of [fewstep](https://arxiv.org/abs/2410.21035)'s shape.\n"
    if "round_index" not in manifest:
        return "A masked diffusion language model (Sahoo et al., 2024).\n"
    return (
        f"A masked diffusion language model distilled by Self-Distillation Through Time (Deschenaux and "
        f"Gulcehre, 2025): the student of round {manifest['round_index'] + 1}, meant to write a text in "
        f"{manifest.get('num_steps')} steps.\n"
    )


def _making(manifest: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, Any]]:
    settings = manifest.get("settings", {})
    rounds = settings.get("rounds", {})
    rows = [
        ("teacher", settings.get("teacher")),
        ("teacher's weights", manifest.get("teacher")),
        ("converted from", manifest.get("converted_from")),
        ("rounds done", manifest["round_index"] + 1 if "round_index" in manifest else None),
        ("steps", manifest.get("num_steps")),
        ("teacher's step size", manifest.get("delta")),
        ("divergence", rounds.get("divergence")),
        ("text", settings.get("data", {}).get("corpus", {}).get("source")),
        ("tokens seen", manifest.get("tokens_seen")),
        ("weights are", manifest.get("weights_are")),
        ("schedule", manifest.get("schedule")),
        *((key.replace("_", " "), value) for key, value in config.items() if type(value) is int),
    ]
    return [(key, value) for key, value in rows if value is not None]


def _measured(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    numbers = {key: value for key, value in manifest.items() if key not in NOT_MEASURED}
    numbers |= manifest.get("metrics", {})
    kinds = (int, float)
    return [(key.replace("_", " "), f"{value:.4g}") for key, value in numbers.items() if type(value) in kinds]
