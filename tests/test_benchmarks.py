"""The scripts of benchmarks/, and that the tables of the documentation show what its files hold."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def script(name: str) -> ModuleType:
    """Return a script of benchmarks/ as a module; nothing of it runs."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, BENCHMARKS / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows of all tables of all result files."""
    for file in BENCHMARKS.rglob("*.json"):
        for value in json.loads(file.read_text(encoding="utf-8")).values():
            if isinstance(value, list):
                yield from value


def tables(page: str) -> Iterator[str]:
    """Yield the lines of a page's tables."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    yield from (line for line in lines if line.startswith("|"))


def shown(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


@pytest.mark.parametrize("page", ["results.md", "benchmarks.md"])
def test_values_with_their_errors_are_of_one_row_of_the_results(page: str) -> None:
    measured = {
        (shown(row[key], decimals), shown(row[f"{key}_standard_error"], decimals))
        for row in rows()
        for key in row
        if f"{key}_standard_error" in row
        for decimals in (0, 1, 2)
    }
    claimed = [pair for line in tables(page) for pair in re.findall(r"([\d.]+) ± ([\d.]+) \|", line)]
    assert len(claimed) > 20
    assert [pair for pair in claimed if pair not in measured] == []


@pytest.mark.parametrize("page", ["results.md", "benchmarks.md"])
def test_entropies_and_bits_a_byte_are_of_the_results(page: str) -> None:
    measured = {shown(row[key], 3) for row in rows() for key in ("entropy", "bits_per_byte") if key in row}
    claimed = [value for line in tables(page) for value in re.findall(r"\| (\d\.\d{3}) (?=\|)", line)]
    assert len(claimed) > 30
    assert [value for value in claimed if value not in measured] == []


def test_the_picture_of_the_results_is_drawn_from_their_rows(tmp_path: Path) -> None:
    plot = script("plot_results.py")
    found = json.loads((BENCHMARKS / "in_small.json").read_text(encoding="utf-8"))["rows"]
    plot.main(tmp_path / "all.png", [BENCHMARKS / "in_small.json"])
    (tmp_path / "one.json").write_text(json.dumps({"rows": [row for row in found if row["steps"]][:1]}))
    plot.main(tmp_path / "one.png", [tmp_path / "one.json"])
    ink = [(matplotlib.image.imread(tmp_path / name)[..., :3] < 0.5).sum() for name in ("one.png", "all.png")]
    assert 0 < ink[0] < ink[1]


def test_draws_in_float32_are_right_but_for_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest and smallest random numbers of 24 bits: below 3.6e-9 a weight cannot win at all."""
    race = script("ablations/float32_draws.py").float32_race
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(1, 40_000, 3)
    counts = race(weights, torch.Generator().manual_seed(0))[0].bincount(minlength=3)
    assert (counts / 40_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    best_for_the_tail = torch.tensor([[[2.0**-24, 1 - 2.0**-24]]])
    monkeypatch.setattr(torch, "rand", lambda shape, generator: best_for_the_tail)
    for weight, winner in ((4e-9, 1), (3e-9, 0)):
        tail = torch.tensor([[[1.0, weight]]], dtype=torch.float64)
        assert race(tail, torch.Generator()).item() == winner


def test_the_mistaken_grid_takes_its_last_pass_too_late() -> None:
    times = script("ablations/mistaken_grid.py").mistaken_times
    start = torch.tensor([0.5, 0.125], dtype=torch.float64)
    two, four = (times(start, delta=0.125, teacher_steps=k).T.tolist() for k in (2, 4))
    assert two == [[0.5, 0.25, 0.25], [0.125, 0.0, 0.0]]
    assert four[0] == pytest.approx([0.5, 0.5 - 1 / 6, 0.5 - 2 / 6, 0.0, 0.0])


def test_known_words_are_counted_in_the_samples_of_an_evaluation(tmp_path: Path) -> None:
    samples = tmp_path / "samples" / "a-model-8-steps-0123456789abcdef"
    samples.mkdir(parents=True)
    (samples / "manifest.json").write_text(json.dumps({"temperature": 0.9, "top_p": 1.0}))
    for number, text in enumerate(["The Union's peace, the pece.", "Peace 1 of"]):
        (samples / f"batch-{number}.json").write_text(json.dumps({"texts": [text]}))
    (row,) = script("known_words.py").shares(tmp_path, {"the", "union's", "peace", "of"})
    assert row == {
        "samples": "a-model-8-steps",
        "temperature": 0.9,
        "top_p": 1.0,
        "known_words": 6 / 7,
        "bytes_per_text": (28 + 10) / 2,
    }
