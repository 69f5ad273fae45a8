"""The report: the right headline, every number in its table, and a page that loads nothing."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewstep.evaluation.comparison import Row
from fewstep.evaluation.generative_perplexity import GenerativePerplexity
from fewstep.evaluation.report import Contender, LiveRound, verdict, write_report
from fewstep.evaluation.report_notes import live_description
from fewstep.evaluation.report_page import with_error
from fewstep.evaluation.report_plots import Series, plot
from fewstep.evaluation.samples import Samples

ROUND = LiveRound(delta=1 / 32, training_steps=(0, 10, 20), divergences=(0.4, 0.39, 0.38))


def row(model: str, steps: int | None, perplexity: float, entropy: float, text: str = "text") -> Row:
    nats = math.log(perplexity) * 10
    return Row(
        model=model,
        steps=steps,
        texts=(text, text),
        entropies=(entropy - 0.01, entropy + 0.01),
        batch_seconds=(0.5,),
        num_forwards=steps or 256,
        cache_refresh=None if steps is None else 1,
        full_passes=1.0 if steps is None else float(steps),
        judged=GenerativePerplexity(nats=(nats, nats), num_tokens=(10, 10), num_bytes=(40, 40)),
    )


TEACHERS = [row("t", 4, 400, 5.0), row("t", 8, 200, 5.0), row("t", 16, 100, 5.0)]


@pytest.mark.parametrize(
    ("students", "steps"),
    [
        # The largest factor of steps: 4 for 8 and 8 for 16 save 2, 4 for 16 saves 4.
        ([row("s", 4, 100, 4.9), row("s", 8, 50, 4.9)], (4, 16)),
        # An equal factor: the better text.
        ([row("s", 4, 200, 4.9), row("s", 8, 90, 4.9)], (8, 16)),
        # At 4 steps the text repeats itself.
        ([row("s", 4, 50, 4.84), row("s", 8, 90, 4.86)], (8, 16)),
        # Equal steps save nothing, nor does a perplexity just above; the fewest steps are shown.
        ([row("s", 8, 101, 5.0), row("s", 4, 201, 5.0)], None),
        ([row("s", 8, 10, 4.8), row("s", 4, 10, 4.8)], None),
    ],
)
def test_the_headline_is_the_largest_saving(students: list[Row], steps: tuple[int, int] | None) -> None:
    result = verdict([*TEACHERS, *students], student="s", teacher="t")
    assert result.saves_steps == (steps is not None)
    assert (result.student.steps, result.teacher.steps) == (steps or (4, 4))
    assert ("match" in result.title and "not match" not in result.title) == result.saves_steps


def test_noise_is_no_saving() -> None:
    """A student that is only luckier than its teacher at equal steps has saved none."""
    noisy = replace(
        row("s", 4, 100, 5.0),
        judged=GenerativePerplexity(nats=(30.0, 60.0), num_tokens=(10, 10), num_bytes=(40, 40)),
    )
    teachers = [row("t", 4, 100, 5.0), row("t", 16, 95, 5.0)]
    assert noisy.judged.perplexity < 95
    assert not verdict([*teachers, noisy], student="s", teacher="t").saves_steps


def test_the_lead_gives_both_perplexities_and_the_signed_difference() -> None:
    lead = verdict([*TEACHERS, row("s", 4, 99, 4.9)], student="s", teacher="t").lead
    assert "<b>99.0 ± 0.0</b>" in lead
    assert "<b>100.0 ± 0.0</b> in 16" in lead
    assert "0.10 nats lower" in lead
    lead = verdict([*TEACHERS, row("s", 4, 99, 5.2)], student="s", teacher="t").lead
    assert "0.20 nats higher" in lead


def test_an_unknown_error_is_left_out() -> None:
    assert with_error(1.26, math.nan, 1) == "1.3"
    assert with_error(1.26, 0.04, 2) == "1.26 ± 0.04"


class Page(HTMLParser):
    """What a page would load, its ids, and the text of its table's cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.in_cell = tag in ("td", "small") and bool(self.rows)

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th", "table")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture
def html(tmp_path: Path) -> str:
    rows = [
        *[row("t", steps, 1600 / steps, 5.0, f"teacher {steps}") for steps in (4, 8, 16, 32)],
        *[
            row("s", steps, 200 / steps, 4.9, f"<script>alert({steps})</script> & more")
            for steps in (4, 8, 16, 32)
        ],
        row("ar", None, 33.3, 4.5, "$title autoregressive"),
    ]
    names = {"t": "Teacher", "s": "Student <i>", "ar": "Baseline"}
    write_report(
        tmp_path / "made" / "report.html",
        rows=rows,
        contenders=[
            Contender(name=name, label=label, about=f"{label} & co") for name, label in names.items()
        ],
        student="s",
        teacher="t",
        samples=Samples(num_samples=2, batch_size=2),
        live=live_description([ROUND], {"loop": {"batch_size": 8}, "rounds": {"teacher_steps": 4}}, 75.2),
        live_rounds=[ROUND, ROUND],
        method={"Judge <b>": "1 < 2"},
    )
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["report.html"]
    return (tmp_path / "made" / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    assert [address for address in page.loads if not address.startswith("#")] == []
    assert page.tags.isdisjoint({"script", "link", "iframe", "img", "object", "embed"})
    assert re.findall(r"@import|url\((?!#)", html) == []


def test_the_ids_of_all_plots_are_different_and_all_references_met(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)) > 0
    references = [address[1:] for address in page.loads] + re.findall(r"url\(#([^)]*)\)", html)
    assert len(references) > 0
    assert set(references) <= set(page.ids)


def test_generated_text_is_escaped_and_not_substituted(html: str) -> None:
    assert "&lt;script&gt;alert(4)&lt;/script&gt; &amp; more" in html
    assert "$title autoregressive" in html
    assert "Student &lt;i&gt; &amp; co" in html
    assert "<dt>Judge &lt;b&gt;</dt><dd>1 &lt; 2</dd>" in html


def test_texts_are_shown_at_few_some_and_many_steps(html: str) -> None:
    shown = [steps for steps in (4, 8, 16, 32) if f"teacher {steps}" in html]
    assert shown == [4, 16, 32]


def test_the_table_holds_every_row(html: str) -> None:
    cells = [row for row in Page(html).rows if len(row) == 5 and row[0]]
    assert [row[0] for row in cells] == ["4", "8", "16", "32"] * 2 + ["one a token"]
    assert cells[1] == ["8", "200.0 ± 0.0", f"{math.log2(200) / 4:.2f} ± 0.00", "5.00 ± 0.01", "0.50"]
    assert cells[4][1] == "50.0 ± 0.0"
    assert cells[8][1:4] == ["33.3 ± 0.0", f"{math.log2(33.3) / 4:.2f} ± 0.00", "4.50 ± 0.01"]


def test_the_live_rounds_give_their_change(html: str) -> None:
    assert "0.4000 at first, 0.3800 at last (-5.0%)" in html
    assert "teacher steps of size 1/32" in html
    assert "what its teacher does in 4, and" in html
    assert "one round of 20 training steps: 160 sequences in 1 min 15 s" in html


def test_a_plot_marks_every_value_in_the_colours_of_the_page() -> None:
    series = [
        Series(number=0, x=[4, 8, 16], y=[900, 300, 100], error=[9, 9, 9]),
        Series(number=2, x=[4, 8], y=[500, 90]),
        Series(number=3, x=[0], y=[80], level=True),
    ]
    svg = plot("p", series, x_label="steps", y_label="perplexity", x_ticks=[4, 8, 16], log_x=True, log_y=True)
    marks = re.findall(r'<use [^>]*style="fill: var\(--series-(\d)\); stroke', svg)
    assert marks == ["0"] * 3 + ["2"] * 2
    assert svg.count("stroke-dasharray") == 1
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert {">4<", ">8<", ">16<", ">steps<", ">perplexity<"} <= set(re.findall(r">[^<>]+<", svg))


def test_a_plot_spans_at_least_what_it_is_told() -> None:
    def ticks(least_range: float) -> list[float]:
        series = [Series(number=0, x=[1, 2], y=[4.90, 4.91])]
        svg = plot("p", series, x_label="x", y_label="y", x_ticks=[], least_range=least_range)
        return [float(label) for label in re.findall(r">(\d\.\d+)<", svg)]

    assert max(ticks(0)) - min(ticks(0)) < 0.02
    assert 0.3 < max(ticks(0.6)) - min(ticks(0.6)) <= 0.6
