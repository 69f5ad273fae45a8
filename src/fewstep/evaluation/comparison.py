"""Several models at several numbers of steps: what each writes, how long it takes, what a judge finds.

All texts have one length and no prompt, so quality (the judge), diversity (unigram entropy) and time
compare across rows. A batch is timed as a whole, after a short untimed one has warmed the model up.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from fewstep.evaluation.diversity import unigram_entropy
from fewstep.evaluation.generative_perplexity import GenerativePerplexity, generative_perplexity
from fewstep.evaluation.judge import Judge
from fewstep.evaluation.samples import Batch, Samples, Sampling, warm_up, write_batch
from fewstep.sampling.text_model import TextModel

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""
Cell = tuple[str, int | None, int | None]
"""A model's name, its steps and its refresh interval; the last two None for an autoregressive one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model at one number of steps."""

    model: str
    steps: int | None
    """None for an autoregressive model, which takes one step a token."""
    cache_refresh: int | None
    """Steps from one full pass to the next; 0 for a single one; None for an autoregressive model."""
    texts: tuple[str, ...]
    entropies: tuple[float, ...]
    """Unigram entropy of each text, in nats."""
    batch_seconds: tuple[float, ...]
    """Wall-clock time of each batch."""
    num_forwards: int
    """Forward passes of the slowest batch."""
    full_passes: float
    """Positions computed for a text, over its length, on average."""
    judged: GenerativePerplexity

    @property
    def entropy(self) -> float:
        """Mean unigram entropy, in nats."""
        return statistics.fmean(self.entropies)

    @property
    def entropy_standard_error(self) -> float:
        """Standard error of `entropy` over texts; NaN for a single one."""
        if len(self.entropies) < 2:
            return math.nan
        return statistics.stdev(self.entropies) / math.sqrt(len(self.entropies))

    @property
    def seconds(self) -> float:
        """Median wall-clock seconds of a batch."""
        return statistics.median(self.batch_seconds)

    def record(self) -> dict[str, Any]:
        """Return the row for a program to read."""
        return {
            "model": self.model,
            "steps": self.steps,
            "cache_refresh": self.cache_refresh,
            "full_passes": self.full_passes,
            "gen_ppl": self.judged.perplexity,
            "bits_per_byte": self.judged.bits_per_byte,
            "entropy": self.entropy,
            "seconds": self.seconds,
        }


def compare(
    models: Mapping[str, TextModel],
    judge: Judge,
    *,
    steps: Sequence[int],
    samples: Samples,
    cache_refreshes: Sequence[int] = (1,),
    progress: Progress | None = None,
) -> list[Row]:
    """Return a row for each model, number of steps and refresh interval, in that order.

    Autoregressive models have one row.

    Args:
        models: The models by the name that their rows carry.
        judge: Scores the decoded texts.
        steps: Numbers of steps for each denoiser.
        samples: Number, length and seed of the texts of each row.
        cache_refreshes: Refresh intervals for each number of steps; 1 is the exact sampler.
        progress: Called after each batch and each pass of the judge.

    Raises:
        ValueError: if there is nothing to compare, or a model cannot write such texts.
    """
    cells: list[Cell] = [
        (name, num_steps, cache_refresh)
        for name, model in models.items()
        for num_steps, cache_refresh in (
            product(steps, cache_refreshes) if model.is_denoiser else [(None, None)]
        )
    ]
    if not cells:
        raise ValueError("there is nothing to compare; pass at least one model and one number of steps")
    progress = progress or _silent
    generated = _generate_all(models, cells, samples, progress)
    progress("judging", 0, len(cells) * samples.num_samples)
    rows = []
    for index, ((name, num_steps, cache_refresh), batches) in enumerate(zip(cells, generated, strict=True)):
        texts = [text for batch in batches for text in batch.texts]
        done = index * len(texts)

        def judging(tokens: int, all_tokens: int, done: int = done) -> None:
            progress(
                "judging", done + samples.num_samples * tokens // all_tokens, len(cells) * samples.num_samples
            )

        rows.append(
            Row(
                model=name,
                steps=num_steps,
                cache_refresh=cache_refresh,
                texts=tuple(texts),
                entropies=tuple(
                    unigram_entropy([torch.tensor(tokens)]) for batch in batches for tokens in batch.tokens
                ),
                batch_seconds=tuple(batch.seconds for batch in batches),
                num_forwards=max(batch.num_forwards for batch in batches),
                full_passes=statistics.fmean(batch.full_passes for batch in batches),
                judged=generative_perplexity(texts, judge, progress=judging),
            )
        )
    return rows


def _generate_all(
    models: Mapping[str, TextModel], cells: list[Cell], samples: Samples, progress: Progress
) -> list[list[Batch]]:
    """Return the batches of each cell."""
    prompts = [""] * samples.batch_size
    ways = [Sampling(steps=steps, cache_refresh=refresh) for _, steps, refresh in cells]
    passes = [way.passes(samples.length) for way in ways]
    total, done = sum(passes) * len(samples.batch_seeds), 0
    progress("generating", done, total)
    for model in models.values():
        warm_up(model, prompts, samples.length)
    generated = []
    for (name, _, _), way, num_passes in zip(cells, ways, passes, strict=True):
        batches = []
        for seed in samples.batch_seeds:
            batches.append(write_batch(models[name], way, prompts, samples.length, seed))
            done += num_passes
            progress("generating", done, total)
        generated.append(batches)
    return generated


def _silent(activity: str, done: int, total: int) -> None:
    pass
