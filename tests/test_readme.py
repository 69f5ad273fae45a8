"""The README's commands and Python, and every recipe, run as a user would run them, only shorter."""

import re
from pathlib import Path

import pytest

from fewstep.cli.main import COMMANDS, command_function
from fewstep.cli.settings import parse
from tests.snippets import SHORT, blocks, fewstep_commands, run, run_python, run_shortened

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_readme_python(tmp_path: Path) -> None:
    (snippet,) = blocks(README, "python")
    printed = run_python(snippet, tmp_path)
    assert "The state of the Union is" in printed
    assert printed.count("My fellow citizens,") >= 2


def test_readme_commands(tmp_path: Path) -> None:
    """In order, as they build on each other: the distillation needs the teacher trained before it."""
    commands = fewstep_commands(README)
    assert {command[0] for command in commands} == set(COMMANDS) - {"demo"} | {"bench"}
    run_shortened(commands, tmp_path)
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
    in_order = (
        "sotu_start",
        "sotu_teacher",
        "sotu_teacher_longer",
        "sotu_autoregressive",
        "sotu_autoregressive_longer",
        "sotu_in_small",
        "sotu_more_rounds",
        "sotu_student",
    )
    for name in in_order:
        recipe = ROOT / "recipes" / f"{name}.yaml"
        command = recipe.read_text(encoding="utf-8").split()[2]  # of "# fewstep COMMAND --config ..."
        run([command, "--config", str(recipe), *SHORT], tmp_path)
    assert (tmp_path / "runs" / "sotu_autoregressive_longer" / "model" / "manifest.json").exists()
    assert (tmp_path / "runs" / "sotu_student" / "round_0" / "manifest.json").exists()
