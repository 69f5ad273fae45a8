"""The README's commands and Python, and every recipe, run as a user would run them, only shorter."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli.main import COMMANDS, command_function
from fewstep.cli.settings import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SHORT = [
    "--loop.training_steps=1",
    "--loop.batch_size=2",
    "--data.context_length=16",
    "--data.validation_contexts=2",
    "--loop.progress=false",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def fewstep_commands() -> list[list[str]]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["fewstep"]]


def run(arguments: list[str], directory: Path) -> str:
    command = [sys.executable, "-m", "fewstep", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_python(tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "The state of the Union is" in done.stdout
    assert done.stdout.count("My fellow citizens,") >= 2


def test_readme_commands(tmp_path: Path) -> None:
    """In order, as they build on each other: the distillation needs the teacher trained before it."""
    (tmp_path / "my_text.txt").write_text("We hold these truths to be self-evident. " * 40, encoding="utf-8")
    commands = fewstep_commands()
    assert {command[0] for command in commands} == set(COMMANDS) - {"demo"} | {"bench"}
    for command in commands:
        shorter = SHORT if command[0] in ("train", "distill") and "--help" not in command else []
        run([*command, *shorter], tmp_path)
    assert (tmp_path / "runs" / "student" / "round_2" / "model.safetensors").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid(recipe: Path) -> None:
    """Every key is known and every value accepted by the command that the first line names."""
    command = re.search(r"fewstep (\w+) --config", recipe.read_text(encoding="utf-8"))
    assert command is not None
    settings = parse(command_function(command[1]), command[1], ["--config", str(recipe)])
    assert settings is not None
    assert settings["output"] == f"runs/{recipe.stem}"


def test_recipes_of_the_shipped_models_run_one_after_another(tmp_path: Path) -> None:
    for name in ("sotu_start", "sotu_teacher", "sotu_autoregressive", "sotu_student"):
        recipe = ROOT / "recipes" / f"{name}.yaml"
        command = "distill" if name == "sotu_student" else "train"
        run([command, "--config", str(recipe), *SHORT], tmp_path)
    assert (tmp_path / "runs" / "sotu_autoregressive" / "model" / "manifest.json").exists()
    assert (tmp_path / "runs" / "sotu_student" / "round_0" / "manifest.json").exists()
