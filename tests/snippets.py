"""Commands and Python inside Markdown, run as a user would run them, only shorter.

Blocks marked `bash` and `python` are run; what needs a GPU or a model hub is marked `text`.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

SHORT = [
    "--loop.training_steps=1",
    "--loop.batch_size=2",
    "--data.context_length=16",
    "--data.validation_contexts=2",
    "--loop.progress=false",
]
SHORT_EVALUATION = [
    *("--metrics", "entropy", "seconds_per_sample", "--steps", "2", "--temperatures", "1"),
    *("--samples.num_samples=2", "--samples.batch_size=2", "--samples.length=8"),
]


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def fewstep_commands(text: str) -> list[list[str]]:
    """Return the words behind `fewstep` of each such command of a page."""
    script = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in script.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["fewstep"]]


def run_shortened(commands: list[list[str]], directory: Path) -> None:
    """Run commands in order in `directory`, where my_text.txt is; training makes one update.

    An evaluation makes two short texts and needs no judge.
    """
    text = "We hold these truths to be self-evident. " * 40
    (directory / "my_text.txt").write_text(text, encoding="utf-8")
    for command in commands:
        shorter = {"train": SHORT, "distill": SHORT, "eval": SHORT_EVALUATION}.get(command[0], [])
        run([*command, *(shorter if "--help" not in command else [])], directory)


def run(arguments: list[str], directory: Path) -> str:
    """Run one command and return what it prints."""
    return _output([sys.executable, "-m", "fewstep", *arguments], directory)


def run_python(code: str, directory: Path) -> str:
    """Run Python and return what it prints."""
    return _output([sys.executable, "-c", code], directory)


def _output(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
