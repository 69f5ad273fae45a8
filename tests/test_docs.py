"""The pages of the documentation: their commands and their Python run, and the site builds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.snippets import blocks, fewstep_commands, run_python, run_shortened

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """Commands first, in order; then the Python of the page, which may use what they made."""
    text = page.read_text(encoding="utf-8")
    run_shortened(fewstep_commands(text), tmp_path)
    if python := blocks(text, "python"):
        run_python("\n\n".join(python), tmp_path)


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "index.html").stat().st_size > 20_000
