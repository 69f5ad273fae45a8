"""`fewstep sample` in two real processes writes the texts that one process writes, each text once."""

import json
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.training.two_processes import command, exit_codes, start


def test_two_processes_share_the_texts_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five texts: three of the first process, two of the second."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    texts = ["sample", "--model", "sotu-student", "--num_samples", "5", "--length", "24", "--num_steps", "4"]
    texts += ["--seed", "3", "--prompt", "The people"]
    assert exit_codes(start(command, tmp_path, [*texts, "--output", str(two)])) == [0, 0]
    assert main([*texts, "--output", str(one)]) == 0
    assert two.read_bytes() == one.read_bytes()
    rows = [json.loads(line) for line in two.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert len({row["text"] for row in rows}) == 5
    assert (tmp_path / "written.0").read_text() == capsys.readouterr().out
    assert (tmp_path / "written.1").read_text() == ""


def test_processes_asked_for_different_texts_are_refused(tmp_path: Path) -> None:
    texts = ["sample", "--model", "sotu-student", "--num_samples", "2", "--output", str(tmp_path / "texts")]
    processes = start(command, tmp_path, [*texts, "--seed", "1"], [*texts, "--seed", "2"])
    assert exit_codes(processes) == [2, 2]
    assert (tmp_path / "said.0").read_text() == (
        "fewstep: seed is 1 in process 0 and 2 in process 1; start all processes with the same settings\n"
    )
    assert not (tmp_path / "texts").exists()
