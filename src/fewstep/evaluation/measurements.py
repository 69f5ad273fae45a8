"""What can be measured of a model: each measurement reads texts, continuations or the model itself.

Metrics are the keys of a row. One measurement may give several, since they come from the same work.
"""

import difflib
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from fewstep.evaluation.conditional_perplexity import conditional_perplexity
from fewstep.evaluation.diversity import distinct_n, self_bleu, unigram_entropy
from fewstep.evaluation.generative_perplexity import (
    generative_perplexity,
    has_vocabulary_of,
    until_end_of_text,
)
from fewstep.evaluation.lambada import lambada
from fewstep.evaluation.likelihood import text_likelihood
from fewstep.evaluation.mauve import mauve
from fewstep.evaluation.samples import Written
from fewstep.evaluation.sources import Sources
from fewstep.sampling.text_model import TextModel

Values = dict[str, float | str]
"""Metrics with their standard errors, where there are any, under `METRIC_standard_error`."""
DISTINCT = (1, 2, 3)
VALIDATION_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a measurement may read."""

    model: TextModel
    written: Written | None
    """What the model wrote; None where the model alone is measured."""
    sources: Sources


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A piece of work, and the metrics that come from it."""

    name: str
    reads: Literal["texts", "continuations", "model"]
    metrics: tuple[str, ...]
    measure: Callable[[Subject], Values]
    is_judged: bool = False
    settings: tuple[str, ...] = ()
    """What decides its values besides the model and the texts: keys of `Sources.identities`."""
    packages: tuple[str, ...] = ()
    """Modules that it imports and that `fewstep[eval]` installs."""


def judged(subject: Subject) -> Values:
    """Return what the judge finds of the texts."""
    model, judge = subject.model, subject.sources.judge
    end: Any = model.tokenizer.eos_token_id
    tokens = _written(subject).tokens
    if subject.sources.after_end == "drop":
        tokens = [until_end_of_text(ids, end) for ids in tokens]
    read = [(text, ids) for ids in tokens if (text := model.decode(ids))]
    if not read:
        raise ValueError("every text is empty, so there is nothing to judge; write longer ones")
    own = [ids for _, ids in read] if has_vocabulary_of(judge, model.tokenizer) else None
    found = generative_perplexity([text for text, _ in read], judge, tokens=own)
    return {
        "gen_ppl": found.perplexity,
        "gen_ppl_standard_error": found.perplexity_standard_error,
        "gen_ppl_sample_mean": found.sample_mean_perplexity,
        "gen_ppl_sample_mean_standard_error": found.sample_mean_perplexity_standard_error,
        "bits_per_byte": found.bits_per_byte,
        "bits_per_byte_standard_error": found.bits_per_byte_standard_error,
    }


def diversity(subject: Subject) -> Values:
    """Return the diversity of the texts' own tokens."""
    tokens = [torch.tensor(ids) for ids in _written(subject).tokens]
    entropies = [unigram_entropy([ids]) for ids in tokens]
    values: Values = {"entropy": statistics.fmean(entropies)}
    if len(entropies) > 1:
        values["entropy_standard_error"] = statistics.stdev(entropies) / math.sqrt(len(entropies))
    longest = max(map(len, tokens))
    return values | {f"distinct_{n}": distinct_n(tokens, n) for n in DISTINCT if n <= longest}


def time(subject: Subject) -> Values:
    """Return what a text cost."""
    written = _written(subject)
    return {"seconds_per_sample": written.seconds_per_sample, "full_passes": written.full_passes}


def overlap(subject: Subject) -> Values:
    """Return how much continuations of one prompt repeat each other."""
    return {"self_bleu": self_bleu(subject.sources.continuations.groups(_written(subject).texts))}


def divergence_from_text(subject: Subject) -> Values:
    """Return the MAUVE of prompts with continuations against prompts with their own."""
    prompts = subject.sources.continuations.prompts(subject.sources.passages)
    generated = [prompt + text for prompt, text in zip(prompts, _written(subject).texts, strict=True)]
    references = [passage.prompt + passage.continuation for passage in subject.sources.passages]
    sources = subject.sources
    found = mauve(generated, references, featurizer=sources.featurizer, device=sources.device)
    return {"mauve": found.mean, "mauve_standard_error": found.standard_error, "mauve_name": found.name}


def conditional(subject: Subject) -> Values:
    """Return what the judge finds of the continuations, given their prompts."""
    prompts = subject.sources.continuations.prompts(subject.sources.passages)
    pairs = [(a, b) for a, b in zip(prompts, _written(subject).texts, strict=True) if b]
    if not pairs:
        raise ValueError("every continuation is empty, so there is nothing to judge; write longer ones")
    found = conditional_perplexity([a for a, _ in pairs], [b for _, b in pairs], subject.sources.judge)
    return {
        "conditional_ppl": found.perplexity,
        "conditional_ppl_standard_error": found.perplexity_standard_error,
    }


def validation(subject: Subject) -> Values:
    """Return the perplexity on held-out text: a bound for a denoiser."""
    contexts = subject.sources.held_out.contexts(subject.model.tokenizer)
    found = text_likelihood(subject.model, contexts, seed=VALIDATION_SEED)
    return {
        "val_ppl": found.perplexity,
        "val_ppl_standard_error": found.perplexity_standard_error,
        "val_bits_per_byte": found.bits_per_byte,
        "val_bits_per_byte_standard_error": found.bits_per_byte_standard_error,
    }


def last_words(subject: Subject) -> Values:
    """Return how well the model knows the last word of a passage."""
    found = lambada(subject.model, subject.sources.cloze, seed=subject.sources.samples.seed)
    return {
        "lambada_accuracy": found.accuracy,
        "lambada_accuracy_standard_error": found.accuracy_standard_error,
        "lambada_ppl": found.perplexity,
        "lambada_ppl_standard_error": found.perplexity_standard_error,
    }


MEASUREMENTS = (
    Measurement(
        name="judged",
        reads="texts",
        metrics=("gen_ppl", "gen_ppl_sample_mean", "bits_per_byte"),
        measure=judged,
        is_judged=True,
        settings=("judge", "after_end"),
    ),
    Measurement(
        name="diversity",
        reads="texts",
        metrics=("entropy", *(f"distinct_{n}" for n in DISTINCT)),
        measure=diversity,
    ),
    Measurement(name="time", reads="texts", metrics=("seconds_per_sample", "full_passes"), measure=time),
    Measurement(
        name="self_bleu",
        reads="continuations",
        metrics=("self_bleu",),
        measure=overlap,
        packages=("sacrebleu",),
    ),
    Measurement(
        name="mauve",
        reads="continuations",
        metrics=("mauve",),
        measure=divergence_from_text,
        settings=("featurizer", "passages"),
        packages=("mauve",),
    ),
    Measurement(
        name="conditional",
        reads="continuations",
        metrics=("conditional_ppl",),
        measure=conditional,
        is_judged=True,
        settings=("judge",),
    ),
    Measurement(
        name="validation",
        reads="model",
        metrics=("val_ppl", "val_bits_per_byte"),
        measure=validation,
        settings=("held_out",),
    ),
    Measurement(
        name="lambada",
        reads="model",
        metrics=("lambada_accuracy", "lambada_ppl"),
        measure=last_words,
        settings=("cloze",),
    ),
)
METRICS = tuple(metric for measurement in MEASUREMENTS for metric in measurement.metrics)


def measurements_of(metrics: Iterable[str]) -> list[Measurement]:
    """Return the work behind `metrics`, each piece once.

    Raises:
        ValueError: if there is none, one is unknown, or needs a package that is not installed.
    """
    wanted = list(metrics)
    if not wanted:
        raise ValueError(f"metrics is empty; name at least one of {', '.join(METRICS)}")
    for metric in wanted:
        if metric not in METRICS:
            nearest = difflib.get_close_matches(metric, METRICS, n=1, cutoff=0)[0]
            raise ValueError(
                f"no metric {metric!r}; did you mean {nearest!r}? There are {', '.join(METRICS)}"
            )
    chosen = [one for one in MEASUREMENTS if set(one.metrics) & set(wanted)]
    for one in chosen:
        for package in one.packages:
            if find_spec(package) is None:
                raise ValueError(
                    f"{one.metrics[0]} needs the Python module {package!r}, which is not installed; "
                    "run: pip install 'fewstep[eval]'"
                )
    return chosen


def _written(subject: Subject) -> Written:
    assert subject.written is not None
    return subject.written
