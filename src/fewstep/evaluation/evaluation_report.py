"""The page of an evaluation: what was measured of each model, against steps, diversity and time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewstep.evaluation.frontier import CURVE_SETTINGS, Row
from fewstep.evaluation.report_notes import judge_title, surroundings
from fewstep.evaluation.report_page import (
    definitions,
    figure,
    name_with_key,
    with_error,
    with_small_error,
    write_page,
)
from fewstep.evaluation.report_plots import Series, plot
from fewstep.evaluation.sources import Sources

NUM_COLORS = 10
SETTINGS = {
    "model": "model",
    "steps": "steps",
    "temperature": "temp.",
    "cache_refresh": "refresh",
    "top_p": "top-p",
}
METRICS = {
    "gen_ppl": ("generative perplexity", 1),
    "gen_ppl_sample_mean": ("the same, mean of texts", 1),
    "bits_per_byte": ("bits per byte", 3),
    "entropy": ("unigram entropy (nats)", 3),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "distinct_3": ("distinct-3", 3),
    "self_bleu": ("self-BLEU", 1),
    "mauve": ("MAUVE", 3),
    "conditional_ppl": ("conditional perplexity", 1),
    "val_ppl": ("validation perplexity", 1),
    "val_bits_per_byte": ("validation bits per byte", 3),
    "lambada_accuracy": ("LAMBADA accuracy", 3),
    "lambada_ppl": ("LAMBADA perplexity", 1),
    "seconds_per_sample": ("seconds a text", 3),
    "full_passes": ("full passes", 1),
}
"""The title of each metric, and the digits behind its point."""
AGAINST_STEPS = {
    "gen_ppl": "Lower is better, at the same entropy.",
    "entropy": "A fall means repetition.",
    "mauve": "Higher is better: closer to the text itself.",
    "self_bleu": "Continuations of one prompt against each other; lower means more diverse.",
    "conditional_ppl": "Continuations after real prompts; lower is better.",
}


def write_evaluation_report(
    path: Path,
    *,
    rows: Sequence[Row],
    matched: Mapping[str, Any],
    examples: Sequence[str],
    sources: Sources,
    failures: Sequence[str],
) -> None:
    """Write the page of an evaluation, in place of the one before.

    Args:
        path: The HTML file.
        rows: Settings and metrics of each cell.
        matched: What `frontier.matched` says of them.
        examples: The first text of each row; none if no texts were written.
        sources: What was measured on.
        failures: What could not be measured.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = lines_of(rows)
    drawings = [*_against_steps(lines), *_frontier(rows, models), *_against_time(lines)]
    legend = "".join(
        f"<span>{name_with_key(number % NUM_COLORS, label, dashed=line[0]['steps'] is None)}</span>"
        for number, (label, line) in enumerate(lines.items())
    )
    sections = [f'<p class="lead">{escape(_lead(rows, models))}</p>']
    if failures:
        missing = "".join(f"<p>{escape(failure)}</p>" for failure in failures)
        sections.append(f'<div class="card"><b>Not measured</b>{missing}</div>')
    if drawings:
        sections.append(
            f'<div class="legend">{legend}</div><div class="grid plots">{"".join(drawings)}</div>'
        )
    sections.append(f'<h2>All rows</h2><div class="card scroll">{_table(rows)}</div>')
    sections += _matched_table(matched)
    if examples:
        sections.append("<h2>What they write</h2>")
        sections.append('<p class="note">The first text of a row, not chosen, beginning with nothing.</p>')
        sections.append(f'<div class="grid samples">{"".join(_examples(rows, examples, models))}</div>')
    sections.append(f"<h2>Method</h2>{definitions(_method(rows, sources))}")
    write_page(path, brand="fewstep eval", title=_title(models), body="\n".join(sections))


def lines_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each line of a plot against steps, by its label.

    A line is a model at one refresh interval and one top-p, at the temperature nearest to 1.
    """
    temperature = min((row["temperature"] for row in rows), key=lambda value: abs(value - 1))
    several = {key: len({row[key] for row in rows if row[key] is not None}) > 1 for key in SETTINGS}
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["temperature"] == temperature:
            label = Path(row["model"]).name if _names_differ(rows) else row["model"]
            if several["cache_refresh"] and row["cache_refresh"] is not None:
                label += f", refresh {row['cache_refresh'] or 'never'}"
            if several["top_p"] and row["steps"] is None:
                label += f", top-p {row['top_p']:g}"
            lines.setdefault(label, []).append(row)
    return lines


def cell(row: Row, metric: str) -> str:
    """Return a metric of a row with its standard error, empty if it was not measured."""
    if metric not in row:
        return ""
    return with_error(row[metric], row.get(f"{metric}_standard_error", math.nan), METRICS[metric][1])


def setting(row: Row, name: str) -> str:
    """Return a setting of a row for a reader."""
    value = row[name]
    if value is None:
        return "one a token" if name == "steps" else ""
    if name == "cache_refresh":
        return {0: "never"}.get(value, str(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the settings in which rows differ, the model and steps always, and the metrics they have."""
    settings = [
        name
        for name in SETTINGS
        if name in ("model", "steps") or len({row[name] for row in rows} - {None}) > 1
    ]
    return settings, [metric for metric in METRICS if any(metric in row for row in rows)]


def _names_differ(rows: Sequence[Row]) -> bool:
    models = {row["model"] for row in rows}
    return len({Path(model).name for model in models}) == len(models)


def _title(models: Sequence[str]) -> str:
    return f"{Path(models[0]).name} evaluated" if len(models) == 1 else f"{len(models)} models compared"


def _lead(rows: Sequence[Row], models: Sequence[str]) -> str:
    steps = sorted({row["steps"] for row in rows if row["steps"]})
    at = f" at {', '.join(map(str, steps))} steps" if steps else ""
    return (
        f"{', '.join(models)}{at}. Read quality together with diversity: a judge likes repetition, so "
        "perplexities compare at the same entropy."
    )


def _against_steps(lines: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    ticks = sorted({row["steps"] for line in lines.values() for row in line if row["steps"]})
    for metric, explanation in AGAINST_STEPS.items() if ticks else ():
        series = []
        for number, line in enumerate(lines.values()):
            own = [row for row in line if metric in row]
            if own:
                series.append(
                    Series(
                        number=number % NUM_COLORS,
                        x=[row["steps"] or 0 for row in own],
                        y=[row[metric] for row in own],
                        error=[row.get(f"{metric}_standard_error", 0.0) for row in own],
                        level=own[0]["steps"] is None,
                    )
                )
        if series:
            title = METRICS[metric][0]
            drawing = plot(
                f"steps-{metric}", series, x_label="steps", y_label=title, x_ticks=ticks, log_x=True,
                log_y=metric.endswith("ppl"),
            )  # fmt: skip
            yield figure(f"{title[0].upper()}{title[1:]} against steps", explanation, drawing)


def _frontier(rows: Sequence[Row], models: Sequence[str]) -> Iterator[str]:
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "gen_ppl" in row and "entropy" in row:
            curves.setdefault(tuple(row[key] for key in CURVE_SETTINGS), []).append(row)
    swept = {
        key: sorted(curve, key=lambda row: row["entropy"]) for key, curve in curves.items() if len(curve) > 1
    }
    series = [
        Series(
            number=models.index(key[0]) % NUM_COLORS,
            x=[row["entropy"] for row in curve],
            y=[row["gen_ppl"] for row in curve],
            label="AR" if key[1] is None else str(key[1]),
        )
        for key, curve in swept.items()
    ]
    if series:
        drawing = plot(
            "frontier", series, x_label="unigram entropy (nats)", y_label="generative perplexity", log_y=True
        )
        yield figure(
            "Frontier",
            "A point a temperature, a line a number of steps; lower right is better. Colours are those of "
            f"{', '.join(Path(model).name for model in models)} in this order.",
            drawing,
        )


def _against_time(lines: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    series = []
    for number, line in enumerate(lines.values()):
        own = [row for row in line if "gen_ppl" in row and "seconds_per_sample" in row]
        if own:
            x, y = ([row[key] for row in own] for key in ("seconds_per_sample", "gen_ppl"))
            series.append(Series(number=number % NUM_COLORS, x=x, y=y))
    if series:
        drawing = plot(
            "latency",
            series,
            x_label="seconds a text",
            y_label="generative perplexity",
            log_x=True,
            log_y=True,
        )
        yield figure("Quality against latency", "Wall-clock time; lower left is better.", drawing)


def _table(rows: Sequence[Row]) -> str:
    settings, metrics = columns(rows)
    titles = [*(SETTINGS[name] for name in settings), *(METRICS[metric][0] for metric in metrics)]
    lines = [
        [
            *(escape(setting(row, name)) for name in settings),
            *(with_small_error(cell(row, m)) for m in metrics),
        ]
        for row in rows
    ]
    return _html_table(titles, lines)


def _matched_table(matched: Mapping[str, Any]) -> Iterator[str]:
    curves = [curve for curve in matched["curves"] if curve["entropy_range"][0] < curve["entropy_range"][1]]
    if not curves:
        return
    lines = []
    for curve in curves:
        found = "outside of what was measured"
        if curve["gen_ppl"] is not None:
            found = with_small_error(with_error(curve["gen_ppl"], curve["gen_ppl_standard_error"], 1))
        low, high = curve["entropy_range"]
        lines.append(
            [*(escape(setting(curve, name)) for name in CURVE_SETTINGS), f"{low:.2f} to {high:.2f}", found]
        )
    titles = [*(SETTINGS[name] for name in CURVE_SETTINGS), "entropies measured", "generative perplexity"]
    yield f"<h2>At matched entropy: {matched['entropy']:.3f} nats</h2>"
    yield (
        '<p class="note">Read from each curve of the frontier, log-perplexity being linear between two '
        "measured temperatures. Beyond them nothing is said.</p>"
    )
    yield f'<div class="card scroll">{_html_table(titles, lines)}</div>'
    reference = matched["reference"]
    at = f"{reference['model']} at {setting(reference, 'steps')} steps"
    found = "; ".join(
        f"{one['model']}{'' if one['cache_refresh'] == 1 else ', refresh ' + setting(one, 'cache_refresh')}: "
        f"{one['steps'] or 'none of those measured'}"
        for one in matched["fewest_steps"]
    )
    if found:
        yield f'<p class="note">Fewest steps that reach {escape(at)} there. {escape(found)}.</p>'


def _html_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{value}</td>' for value in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _examples(rows: Sequence[Row], examples: Sequence[str], models: Sequence[str]) -> Iterator[str]:
    """Yield the text of each model at its fewest and its most steps."""
    for number, model in enumerate(models):
        own = [(row, text) for row, text in zip(rows, examples, strict=True) if row["model"] == model]
        shown = {id(pair): pair for pair in (own[0], own[-1])}
        for row, text in shown.values():
            where = ", ".join(f"{SETTINGS[name]} {setting(row, name)}" for name in ("steps", "temperature"))
            yield (
                f'<div class="card of-{number % NUM_COLORS}"><b>{escape(Path(model).name)}</b>'
                f"<small>{where}</small><p>{escape(text.strip())}</p></div>"
            )


def _method(rows: Sequence[Row], sources: Sources) -> dict[str, str]:
    """Return what a reader needs to judge the numbers that are there."""
    _, metrics = columns(rows)
    texts, more, held_out = sources.samples, sources.continuations, sources.held_out
    notes = {}
    if {"gen_ppl", "entropy"} & set(metrics):
        notes["Texts"] = (
            f"{texts.num_samples} of {texts.length} tokens for each row, without a prompt, seed {texts.seed}."
        )
    if {"gen_ppl", "conditional_ppl"} & set(metrics):
        notes["Judge"] = f"{judge_title(sources.judge_name)}, in float32."
    if sources.passages:
        notes["Continuations"] = (
            f"{more.num_prompts} prompts of {more.prompt_length} tokens of held-out text, each continued "
            f"{more.per_prompt} times by {more.length} tokens."
        )
    for name in dict.fromkeys(row["mauve_name"] for row in rows if "mauve_name" in row):
        notes["MAUVE"] = f"{name}; prompts with continuations against prompts with their own."
    if "val_ppl" in metrics:
        share = "all" if held_out.fraction == 1 else f"the held-out {held_out.fraction:g}"
        notes["Validation"] = (
            f"Up to {held_out.num_contexts} contexts of {held_out.context_length} tokens of {share} of "
            f"{held_out.corpus.source}; a bound for denoisers, exact for autoregressive models."
        )
    if sources.cloze:
        notes["LAMBADA"] = f"{len(sources.cloze)} passages; accuracy by argmax in one pass."
    notes["Errors"] = "± and bands are one standard error."
    if "seconds_per_sample" in metrics:
        notes["Time"] = (
            f"Median over batches of {texts.batch_size} texts, the model warm, divided by the texts."
        )
    return notes | surroundings()
