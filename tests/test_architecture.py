"""The rules of DESIGN.md that a reader of the source can check: who imports whom, names, lengths."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "fewstep"
FOUNDATION = {"seeds"}
MIDDLE = {"losses", "sampling", "distillation", "data"}
LOWER = {*FOUNDATION, "diffusion", "models", *MIDDLE}
MAY_IMPORT = {
    "seeds": set(),
    "diffusion": FOUNDATION,
    "models": FOUNDATION,
    **dict.fromkeys(MIDDLE, LOWER),
    "evaluation": {*LOWER, "fewstep"},
    "serving": LOWER,
    "benchmark": {*LOWER, "evaluation"},
    "training": {*LOWER, "evaluation"},
    "cli": {*LOWER, "evaluation", "serving", "benchmark", "training", "fewstep"},
}
"""What each part may import, besides itself; "fewstep" is the package's own `__init__`, which knows the
version."""
ENTRY_POINTS = {"__init__", "__main__"}
FORBIDDEN_NAMES = {"utils", "common", "core", "misc", "helpers"}
LONGEST_FILE = 350

MODULES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in {"cli", "__main__.py"}]


def part_of(path: Path) -> str:
    """Return the part of the package that a module belongs to, such as "losses" or "seeds"."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(source: str) -> Iterator[str]:
    """Yield the parts of the package that `source` imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fewstep":
                is_part = len(parts) > 1 and parts[1] in MAY_IMPORT
                yield parts[1] if is_part else "fewstep"


def forbidden_calls(source: str) -> Iterator[str]:
    """Yield the calls in `source` that print, exit, or set state of the whole process."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "print",
            "exit",
            "quit",
            "sys.exit",
            "os._exit",
            "random.seed",
            "np.random.seed",
            "torch.manual_seed",
            "torch.set_default_dtype",
            "torch.set_num_threads",
            "torch.use_deterministic_algorithms",
        }:
            yield ast.unparse(node.func)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    part = part_of(path)
    if part in ENTRY_POINTS:
        return
    assert part in MAY_IMPORT, f"say in DESIGN.md and here where {part!r} belongs"
    wrong = set(imported_parts(path.read_text())) - MAY_IMPORT[part] - {part}
    assert not wrong, f"{part} imports {', '.join(sorted(wrong))}"


def test_nothing_imports_the_command_line() -> None:
    assert [part for part, allowed in MAY_IMPORT.items() if "cli" in allowed] == []


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("from fewstep.models.config import SHAPES", ["models"]),
        ("def f():\n    import fewstep.cli.main", ["cli"]),
        ("from fewstep import seeds", ["seeds"]),
        ("from fewstep import load", ["fewstep"]),
        ("import fewstep", ["fewstep"]),
        ("import torch", []),
    ],
)
def test_imports_are_found(source: str, parts: list[str]) -> None:
    assert list(imported_parts(source)) == parts


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_neither_prints_nor_exits_nor_sets_global_state(path: Path) -> None:
    assert list(forbidden_calls(path.read_text())) == []


def test_forbidden_calls_are_found() -> None:
    source = "import sys, torch\nprint(1)\nprint_rows(2)\nsys.exit(2)\ntorch.manual_seed(0)\ng.manual_seed(0)"
    assert list(forbidden_calls(source)) == ["print", "sys.exit", "torch.manual_seed"]


def test_no_file_is_named_for_nothing() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


def test_no_file_is_too_long() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    files += [path for suffix in ("html", "css", "js") for path in PACKAGE.rglob(f"*.{suffix}")]
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_first_what_it_is(path: Path) -> None:
    source = path.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source))
