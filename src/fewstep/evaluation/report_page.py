"""The page that every report is: one HTML file that loads nothing, for light and dark ground."""

import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_name("report.html")
DASHES = '<path d="M0 4h4v2H0zM6 4h4v2H6z"/>'
KEYS = (
    '<circle cx="5" cy="5" r="4"/>',
    '<path d="M5 .5 9.6 9H.4z"/>',
    '<path d="M1 1h8v8H1z"/>',
    '<path d="M5 0 10 5 5 10 0 5z"/>',
    '<path d="M5 9.5.4 1h9.2z"/>',
    '<path d="M3.5 0h3v3.5H10v3H6.5V10h-3V6.5H0v-3h3.5z"/>',
)
"""The markers of a plot's lines, as `report_plots.MARKERS`; dashes stand for what has no steps."""


def write_page(path: Path, *, brand: str, title: str, body: str) -> None:
    """Write the page, in place of the one before; `brand` and `title` are plain text, `body` is HTML."""
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        brand=escape(brand), title=escape(title), body=body
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


def figure(title: str, explanation: str, drawing: str) -> str:
    """Return a drawing with its caption."""
    caption = f"<figcaption>{title}<small>{explanation}</small></figcaption>"
    return f'<figure class="card">{caption}{drawing}</figure>'


def name_with_key(number: int, label: str, *, dashed: bool) -> str:
    """Return a label behind the colour and the marker of its line."""
    marker = DASHES if dashed else KEYS[number % len(KEYS)]
    key = f'<svg class="key of-{number}" viewBox="0 0 10 10" aria-hidden="true">{marker}</svg>'
    return f'<span class="name">{key}{escape(label)}</span>'


def definitions(notes: Mapping[str, str]) -> str:
    """Return names and values, both plain text, as a list."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in notes.items()) + "</dl>"


def with_error(value: float, error: float, digits: int) -> str:
    """Return `value` ± `error`, without an error that is not known."""
    return f"{value:.{digits}f}" if math.isnan(error) else f"{value:.{digits}f} ± {error:.{digits}f}"


def with_small_error(cell: str) -> str:
    """Return what `with_error` made, as HTML that sets the error back."""
    value, mark, error = cell.partition(" ± ")
    return f"{value} <small>± {error}</small>" if mark else cell
