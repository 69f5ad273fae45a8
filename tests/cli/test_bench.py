"""`fewstep bench` as a user meets it: a real run, its last line, its files, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli.bench import print_table
from fewstep.cli.main import SUBCOMMANDS, main, summary

TINY = [
    *("--shapes", "[tiny]", "--batches", "[1]", "--steps", "[2]", "--cache_refresh", "[1,0]"),
    *("--length", "16", "--timed_tokens", "1", "--repeats", "1"),
]


def run_fewstep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fewstep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_real_run_of_latency(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    process = run_fewstep("bench", "latency", *TINY, "--output", str(file), "--plot")
    assert process.returncode == 0, process.stderr
    *table, last = process.stdout.splitlines()
    result = json.loads(last)
    assert result == json.loads(file.read_text())
    rows = result["rows"]
    assert [(row["model"], row["batch"], row["steps"], row["cache_refresh"]) for row in rows] == [
        ("tiny", 1, None, None), ("tiny", 1, 2, 1), ("tiny", 1, 2, 0),
    ]  # fmt: skip
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(16 / row["seconds"])
    assert len(table) == 1 + len(rows)
    assert table[0].split()[:4] == ["model", "batch", "steps", "refresh"]
    assert table[3].split()[:4] == ["tiny", "1", "2", "never"]
    assert "tiny: drawing untrained weights" in process.stderr.splitlines()
    measured = [json.loads(line)["row"] for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["seconds"] for row in measured] == [row["seconds"] for row in rows]
    assert file.with_suffix(".png").exists()


def test_bench_alone_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        assert main(arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        for name, place in SUBCOMMANDS.items():
            assert f"{name} {' '.join(summary(place).split())}" in printed
        assert "Train a masked" not in printed


def test_the_overview_lists_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, place in SUBCOMMANDS.items():
        assert f"{name} {' '.join(summary(place).split())}" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bench", "late"], "no command 'bench late'; did you mean 'bench latency'? See fewstep --help"),
        (["bunch"], "no command 'bunch'; did you mean 'bench'? See fewstep --help"),
        (["bench", "latency", "--stebs", "[2]"], "unknown flag --stebs; did you mean --steps?"),
        (["bench", "sampling", "--steps", "[4,0]"], "steps is 0; it must be at least 1"),
        (["bench", "distill", "--lengths", "[2048]"], "length is 2048; the models take 1 to 1024 tokens"),
        (["bench", "latency", "--plot"], "plot needs output, beside which the PNG is written; name one"),
        (
            ["bench", "latency", "--output", "rows.txt"],
            "output is 'rows.txt'; name a file that ends in .json",
        ),
        (
            ["bench", "sampling", "--output", "none/rows.json"],
            "output is 'none/rows.json', and there is no directory 'none'; make it first",
        ),
    ],
)  # fmt: skip
def test_refusals_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"fewstep: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_shape_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sampling", "--shape", "huge"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got huge" in line
    assert "'xlarge'" in line


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a", "long"], [[100, 2], [3, "x"]])
    assert capsys.readouterr().out == "  a  long\n100     2\n  3     x\n"
