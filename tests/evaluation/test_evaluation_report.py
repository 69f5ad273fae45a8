"""The page of an evaluation: every number of the rows, plots of them, and nothing loaded from elsewhere."""

import re
from typing import Any

import pytest

from fewstep.evaluation.evaluation_report import cell, columns, lines_of, setting, write_evaluation_report
from fewstep.evaluation.frontier import matched
from fewstep.evaluation.held_out import Continuations, HeldOut, Passage
from fewstep.evaluation.samples import Samples
from fewstep.evaluation.sources import Sources

SOURCES = Sources(
    samples=Samples(num_samples=12, batch_size=4, length=77, seed=5),
    continuations=Continuations(num_prompts=7), held_out=HeldOut(),
    passages=[Passage(prompt="a", continuation="b")] * 7, cloze=["a b"] * 9,
    judge_name="my <judge>", featurizer="smollm2", after_end="keep", device="cpu",
)  # fmt: skip


def row(model: str, steps: int | None, temperature: float, **metrics: Any) -> dict[str, Any]:
    refresh = None if steps is None else 1
    settings = {"steps": steps, "temperature": temperature, "cache_refresh": refresh, "top_p": 1.0}
    return {"model": model, **settings, **metrics}


ROWS = [
    row("runs/a&b", steps, temperature, gen_ppl=800.0 / steps * temperature, gen_ppl_standard_error=2.0,
        entropy=4 + temperature, seconds_per_sample=steps / 10, mauve=0.5, mauve_name="mauve_x", val_ppl=30.0)
    for steps in (4, 8) for temperature in (0.5, 1.0)
] + [
    row("runs/ar", None, temperature, gen_ppl=60.0 * temperature, entropy=4 + temperature,
        seconds_per_sample=9.0)
    for temperature in (0.5, 1.0)
]  # fmt: skip


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_evaluation_report(
        path, rows=ROWS, matched=matched(ROWS), examples=[f"<i>text {n}" for n in range(len(ROWS))],
        sources=SOURCES, failures=["self_bleu of <x>: too few"],
    )  # fmt: skip
    return path.read_text(encoding="utf-8")


def table_rows(html: str) -> list[list[str]]:
    cells = [re.findall(r"<td>(.*?)</td>", line) for line in re.findall(r"<tr>(.*?)</tr>", html)]
    return [[re.sub(r"</?small>", "", one) for one in line] for line in cells if line]


def test_the_table_holds_every_number(html: str) -> None:
    lines = table_rows(html)
    assert lines[:6] == [
        ["runs/a&amp;b", "4", "0.5", "100.0 ± 2.0", "4.500", "0.500", "30.0", "0.400"],
        ["runs/a&amp;b", "4", "1", "200.0 ± 2.0", "5.000", "0.500", "30.0", "0.400"],
        ["runs/a&amp;b", "8", "0.5", "50.0 ± 2.0", "4.500", "0.500", "30.0", "0.800"],
        ["runs/a&amp;b", "8", "1", "100.0 ± 2.0", "5.000", "0.500", "30.0", "0.800"],
        ["runs/ar", "one a token", "0.5", "30.0", "4.500", "", "", "9.000"],
        ["runs/ar", "one a token", "1", "60.0", "5.000", "", "", "9.000"],
    ]


def test_curves_are_compared_at_the_entropy_of_the_first_model(html: str) -> None:
    assert "At matched entropy: 5.000 nats" in html
    assert "Fewest steps that reach runs/a&amp;b at 8 steps there. runs/a&amp;b: 8." in html
    assert [line[-2:] for line in table_rows(html)[6:]] == [
        ["4.50 to 5.00", "200.0 ± 2.0"], ["4.50 to 5.00", "100.0 ± 2.0"], ["4.50 to 5.00", "60.0 ± 0.0"],
    ]  # fmt: skip


def test_there_is_a_plot_of_each_kind(html: str) -> None:
    titles = re.findall(r"<figcaption>([^<]*)", html)
    assert titles == [
        "Generative perplexity against steps", "Unigram entropy (nats) against steps", "MAUVE against steps",
        "Frontier", "Quality against latency",
    ]  # fmt: skip
    frontier = html.split("<figcaption>Frontier")[1].split("</figure>")[0]
    assert {">4<", ">8<", ">AR<"} <= set(re.findall(r">[^<>]+<", frontier))
    steps = html.split("<figcaption>Generative")[1].split("</figure>")[0]
    assert len(re.findall(r'<use [^>]*style="fill: var\(--series-0\); stroke', steps)) == 2
    assert steps.count("stroke-dasharray") == 1  # the autoregressive model is a level


def test_the_page_loads_nothing_and_escapes_what_it_shows(html: str) -> None:
    assert not re.findall(r"<(script|link|img|iframe)|@import|url\((?!#)", html)
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and set(references) <= set(ids)
    assert "&lt;i&gt;text 0" in html and "&lt;i&gt;text 3" in html and "text 1" not in html
    assert "self_bleu of &lt;x&gt;: too few" in html
    for note in ("12 of 77 tokens", "my &lt;judge&gt;", "7 prompts of 50 tokens", "mauve_x", "9 passages"):
        assert note in html


def test_lines_are_drawn_at_the_temperature_nearest_to_1() -> None:
    lines = lines_of(ROWS)
    assert list(lines) == ["a&b", "ar"]
    assert [one["temperature"] for line in lines.values() for one in line] == [1.0] * 3
    nucleus = [{**one, "top_p": 0.9} for one in ROWS if one["steps"] is None]
    cached = [{**one, "cache_refresh": 0} for one in ROWS if one["steps"]]
    assert list(lines_of([*ROWS, *nucleus, *cached])) == [
        "a&b, refresh 1", "ar, top-p 1", "ar, top-p 0.9", "a&b, refresh never",
    ]  # fmt: skip
    same_name = [{**one, "model": f"{one['model']}/model"} for one in ROWS]
    assert list(lines_of(same_name)) == ["runs/a&b/model", "runs/ar/model"]


def test_cells_and_columns_are_for_a_reader() -> None:
    assert columns(ROWS[:2]) == (
        ["model", "steps", "temperature"],
        ["gen_ppl", "entropy", "mauve", "val_ppl", "seconds_per_sample"],
    )
    assert (cell(ROWS[0], "gen_ppl"), cell(ROWS[0], "bits_per_byte")) == ("100.0 ± 2.0", "")
    assert (setting(ROWS[-1], "steps"), setting(ROWS[-1], "cache_refresh")) == ("one a token", "")
