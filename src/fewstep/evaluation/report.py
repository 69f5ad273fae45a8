"""The page of a comparison: one HTML file that loads nothing, with the result that matters on top."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fewstep.evaluation.comparison import Row
from fewstep.evaluation.report_page import (
    definitions,
    figure,
    name_with_key,
    with_error,
    with_small_error,
    write_page,
)
from fewstep.evaluation.report_plots import Series, plot
from fewstep.evaluation.samples import Samples

ENTROPY_TOLERANCE = 0.15
"""Nats that a student's unigram entropy may lie below its teacher's; below that it repeats itself."""
LEAST_ENTROPY_RANGE = 4 * ENTROPY_TOLERANCE
"""Nats that the plot of entropies spans at least, so that what does not matter looks small."""
AUTOREGRESSIVE_PLACE = 3
"""The place, among contenders, of the one without steps."""
SHOWN_STEPS = 3
"""Numbers of steps for which texts are shown."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """How the report speaks of a model."""

    name: str
    """The `model` of its rows."""
    label: str
    """A title, such as "Shipped student"."""
    about: str
    """A sentence or two on what it is and what it cost."""


@dataclass(frozen=True, kw_only=True)
class LiveRound:
    """The divergence that a round of the live distillation measured on its fixed probe."""

    delta: float
    training_steps: tuple[int, ...]
    divergences: tuple[float, ...]

    @property
    def change(self) -> float:
        """Last divergence over first, less one."""
        return self.divergences[-1] / self.divergences[0] - 1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A row of a student beside a row of its teacher.

    If `saves_steps`, the judge likes the student's texts at least as well, and their entropy is at most
    ENTROPY_TOLERANCE lower, though it took fewer steps.
    """

    student: Row
    teacher: Row
    saves_steps: bool

    @property
    def title(self) -> str:
        """The result in one line."""
        if self.saves_steps:
            return f"{self.student.steps} steps of the student match {self.teacher.steps} of its teacher"
        return "No steps saved: the student does not match its teacher in fewer"

    @property
    def lead(self) -> str:
        """The numbers behind the title, as HTML."""
        student, teacher = self.student, self.teacher
        sentence = (
            f"In {student.steps} steps the shipped student writes text of generative perplexity "
            f"<b>{_perplexity(student)}</b>; its teacher reaches <b>{_perplexity(teacher)}</b> in "
            f"{teacher.steps}. Its unigram entropy is {_difference(student.entropy, teacher.entropy)}."
        )
        if self.saves_steps:
            return sentence
        return (
            f"{sentence} Nowhere is it better than its teacher at equal steps, beyond the noise, and as good "
            f"as its teacher at more, with an entropy at most {ENTROPY_TOLERANCE} nats lower."
        )


def verdict(rows: Sequence[Row], *, student: str, teacher: str) -> Verdict:
    """Return the pair of rows in which `student` saves the largest factor of steps over `teacher`.

    Where it saves none, both rows are those of the fewest steps. Of equal factors, the better text wins.
    A row that is no better than the teacher's of the same steps, beyond the noise, saves nothing: there
    the teacher could have stopped earlier too.
    """
    students = [row for row in rows if row.model == student]
    teachers = [row for row in rows if row.model == teacher]
    pairs = [
        (large.steps / small.steps, -small.judged.perplexity, small, large)
        for small in students
        for large in teachers
        if small.steps and large.steps and small.steps < large.steps
        if is_better_at_equal_steps(small, teachers)
        if small.judged.perplexity <= large.judged.perplexity
        if small.entropy >= large.entropy - ENTROPY_TOLERANCE
    ]
    if pairs:
        *_, small, large = max(pairs, key=lambda pair: pair[:2])
        return Verdict(student=small, teacher=large, saves_steps=True)
    fewest = [min(rows, key=lambda row: row.steps or 0) for rows in (students, teachers)]
    return Verdict(student=fewest[0], teacher=fewest[1], saves_steps=False)


def is_better_at_equal_steps(student: Row, teachers: Sequence[Row]) -> bool:
    """Return whether the perplexity of `student` is below its teacher's by over one standard error."""
    for teacher in teachers:
        if teacher.steps == student.steps:
            errors = (row.judged.perplexity_standard_error for row in (student, teacher))
            noise = math.hypot(*(0.0 if math.isnan(error) else error for error in errors))
            return teacher.judged.perplexity - student.judged.perplexity > noise
    return True


def write_report(
    path: Path,
    *,
    rows: Sequence[Row],
    contenders: Sequence[Contender],
    student: str,
    teacher: str,
    samples: Samples,
    live: str,
    live_rounds: Sequence[LiveRound],
    method: Mapping[str, str],
) -> None:
    """Write the page, in place of the one before.

    Args:
        path: The HTML file.
        rows: The comparison.
        contenders: At most four models in the order of their colours, the autoregressive one last.
        student, teacher: Whose rows the headline compares.
        samples: What each row rests on.
        live: What the live distillation did, in plain text.
        live_rounds: Its divergences.
        method: Names and values of all that a reader needs to judge the numbers, in plain text.
    """
    result = verdict(rows, student=student, teacher=teacher)
    named = [_name(number, one) for number, one in enumerate(contenders)]
    models = "".join(
        f'<div class="card"><b>{name}</b><p>{escape(one.about)}</p></div>'
        for name, one in zip(named, contenders, strict=True)
    )
    body = f"""<p class="lead">{result.lead}</p>
<div class="grid facts">{"".join(_facts(result, samples))}</div>

<h2>The models</h2>
<div class="grid models">{models}</div>

<h2>Quality, diversity and time</h2>
<p class="note">A few-step model is good if all three hold: a judge finds its text likely (low
perplexity), it does not repeat itself to get there (entropy stays up), and it takes little time.
Bands show one standard error.</p>
<div class="legend">{"".join(f"<span>{name}</span>" for name in named)}</div>
<div class="grid plots">{"".join(_comparison_plots(rows, contenders, samples))}</div>
<div class="card scroll">{_table(rows, contenders, samples)}</div>

<h2>Distilled while you waited</h2>
<p class="note">{escape(live)}</p>
<div class="grid plots live">{"".join(_live_plots(live_rounds))}</div>

<h2>What they write</h2>
<p class="note">The first text of each row of the table, not chosen, beginning with nothing.</p>
{"".join(_samples(rows, contenders))}

<h2>Method</h2>
{definitions(method)}"""
    write_page(path, brand="fewstep demo", title=result.title, body=body)


def _perplexity(row: Row) -> str:
    perplexity = row.judged.perplexity
    return with_error(perplexity, row.judged.perplexity_standard_error, 1 if perplexity < 1000 else 0)


def _difference(value: float, other: float) -> str:
    difference = value - other
    if abs(difference) < 0.005:
        return "the same"
    return f"{abs(difference):.2f} nats {'higher' if difference > 0 else 'lower'}"


def _facts(result: Verdict, samples: Samples) -> Iterator[str]:
    student, teacher = result.student, result.teacher
    if result.saves_steps and student.steps and teacher.steps:
        factor = teacher.steps / student.steps
        yield _fact(f"{factor:g}&times;", f"fewer steps: {student.steps} rather than {teacher.steps}")
    yield _fact(
        f"{student.judged.perplexity:.1f}",
        f"generative perplexity; {teacher.judged.perplexity:.1f} of the teacher (lower is better)",
    )
    yield _fact(f"{student.entropy:.2f}", f"nats of unigram entropy; {teacher.entropy:.2f} of the teacher")
    texts = f"{samples.batch_size} texts" if samples.batch_size > 1 else "a text"
    yield _fact(f"{student.seconds:.2f} s", f"for {texts}; {teacher.seconds:.2f} s of the teacher")


def _fact(number: str, meaning: str) -> str:
    return f'<div class="card"><strong>{number}</strong><span>{meaning}</span></div>'


def _name(number: int, contender: Contender) -> str:
    return name_with_key(number, contender.label, dashed=number == AUTOREGRESSIVE_PLACE)


def _comparison_plots(
    rows: Sequence[Row], contenders: Sequence[Contender], samples: Samples
) -> Iterator[str]:
    ticks = sorted({row.steps for row in rows if row.steps})
    quality, diversity, speed = [], [], []
    for number, contender in enumerate(contenders):
        own = [row for row in rows if row.model == contender.name]
        perplexities = [row.judged.perplexity for row in own]
        errors = [row.judged.perplexity_standard_error for row in own]
        level = own[0].steps is None
        steps = [row.steps or 0 for row in own]
        quality.append(Series(number=number, x=steps, y=perplexities, error=errors, level=level))
        entropies = [row.entropy for row in own]
        errors = [row.entropy_standard_error for row in own]
        diversity.append(Series(number=number, x=steps, y=entropies, error=errors, level=level))
        speed.append(Series(number=number, x=[row.seconds for row in own], y=perplexities))
    unit = f"seconds for {samples.batch_size} texts" if samples.batch_size > 1 else "seconds for a text"
    yield figure(
        "Quality against steps",
        "Generative perplexity; lower is better.",
        plot(
            "quality",
            quality,
            x_label="steps",
            y_label="generative perplexity",
            x_ticks=ticks,
            log_x=True,
            log_y=True,
        ),
    )
    yield figure(
        "Diversity against steps",
        "Unigram entropy of a text; a fall means repetition.",
        plot(
            "diversity",
            diversity,
            x_label="steps",
            y_label="unigram entropy (nats)",
            x_ticks=ticks,
            log_x=True,
            least_range=LEAST_ENTROPY_RANGE,
        ),
    )
    yield figure(
        "Quality against time",
        "The same over wall-clock time; lower left is better. A diamond is the baseline.",
        plot("time", speed, x_label=unit, y_label="generative perplexity", log_x=True, log_y=True),
    )


def _live_plots(rounds: Sequence[LiveRound]) -> Iterator[str]:
    for index, one in enumerate(rounds):
        first, last = one.divergences[0], one.divergences[-1]
        yield figure(
            f"Round {index + 1}: teacher steps of size 1/{1 / one.delta:g}",
            f"Divergence on the fixed probe: {first:.4f} at first, {last:.4f} at last ({one.change:+.1%}).",
            plot(
                f"round{index}",
                [Series(number=1, x=one.training_steps, y=one.divergences)],
                x_label="training steps",
                y_label="divergence (nats)",
            ),
        )


def _table(rows: Sequence[Row], contenders: Sequence[Contender], samples: Samples) -> str:
    titles = (
        "steps",
        "generative<br>perplexity",
        "bits<br>per byte",
        "unigram<br>entropy (nats)",
        f"seconds for<br>{samples.batch_size} texts",
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    bodies = []
    for number, contender in enumerate(contenders):
        name = f'<tr><th scope="rowgroup" colspan="{len(titles)}">{_name(number, contender)}</th></tr>'
        lines = [
            f"<tr>{''.join(f'<td>{with_small_error(cell)}</td>' for cell in _cells(row))}</tr>"
            for row in rows
            if row.model == contender.name
        ]
        bodies.append(f"<tbody>{name}{''.join(lines)}</tbody>")
    return f"<table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table>"


def _cells(row: Row) -> Iterator[str]:
    judged = row.judged
    yield str(row.steps) if row.steps else "one a token"
    yield _perplexity(row)
    yield with_error(judged.bits_per_byte, judged.bits_per_byte_standard_error, 2)
    yield with_error(row.entropy, row.entropy_standard_error, 2)
    yield f"{row.seconds:.2f}"


def _samples(rows: Sequence[Row], contenders: Sequence[Contender]) -> Iterator[str]:
    """Yield the first text of each model, at few, some and many steps."""
    steps = sorted({row.steps for row in rows if row.steps})
    spread = [round(index * (len(steps) - 1) / (SHOWN_STEPS - 1)) for index in range(SHOWN_STEPS)]
    shown: list[int | None] = [steps[index] for index in dict.fromkeys(spread)]
    for num_steps in [*shown, None]:
        cards = [
            f'<div class="card of-{number}"><b>{_name(number, contender)}</b>'
            f"<small>generative perplexity of its row: {row.judged.perplexity:.1f}</small>"
            f"<p>{escape(row.texts[0].strip())}</p></div>"
            for number, contender in enumerate(contenders)
            for row in rows
            if row.model == contender.name and row.steps == num_steps
        ]
        if cells := "".join(cards):
            title = f"{num_steps} steps" if num_steps else "One step a token"
            yield f'<h3>{title}</h3><div class="grid samples">{cells}</div>'
