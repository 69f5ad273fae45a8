"""LAMBADA: the last word of a passage, which takes the whole passage to guess (Paperno et al., 2016).

    model = fewstep.load("sotu-student")
    print(lambada(model, load_passages("sotu-cloze")).accuracy)

A word counts as guessed if all of its tokens are the likeliest: a denoiser predicts them in one pass, all
of them masked, from the context before; an autoregressive model one after another.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.data.corpora import Corpus
from fewstep.evaluation.completions import completion, score_completions
from fewstep.sampling.text_model import TextModel

SHIPPED_SETS = {"sotu-cloze": Path(__file__).parent.parent / "assets" / "cloze.jsonl"}
LAST_WORD = re.compile(r"(.*\S)(\s+\S+)\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Lambada:
    """For each passage whether its last word was guessed, and -log p of that word in nats (or a bound).

    Standard errors treat passages as independent, and are NaN for a single one.
    """

    correct: tuple[bool, ...]
    nats: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of passages whose last word was guessed."""
        return statistics.fmean(self.correct)

    @property
    def accuracy_standard_error(self) -> float:
        """Standard error of `accuracy`."""
        return _standard_error(self.correct)

    @property
    def perplexity(self) -> float:
        """exp(mean over passages of -log p of the last word): a word, not a token; a bound for a denoiser."""
        return math.exp(statistics.fmean(self.nats))

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of `perplexity`, to first order."""
        return self.perplexity * _standard_error(self.nats)


def lambada(
    model: TextModel, passages: Sequence[str], *, num_samples: int = 16, batch_size: int = 16, seed: int = 0
) -> Lambada:
    """Return how well `model` guesses the last word of each passage.

    Args are those of `score_completions`: with the default, words of up to four tokens are exact.

    Raises:
        ValueError: if there is no passage, or one has no last word.
    """
    if isinstance(passages, str) or not passages:
        raise ValueError("there is no passage to complete; pass a list of one or more")
    completions = []
    for index, passage in enumerate(passages):
        parts = LAST_WORD.fullmatch(passage)
        if parts is None:
            raise ValueError(f"passage {index} has fewer than two words; a last word needs context before it")
        completions.append(completion(model.tokenizer, *parts.groups()))
    scores = score_completions(
        model.network, completions, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    return Lambada(
        correct=tuple(score.is_predicted for score in scores), nats=tuple(score.nats for score in scores)
    )


def load_passages(source: str) -> list[str]:
    """Return the passages of `source`.

    Args:
        source: "sotu-cloze", which ships with the package; a JSONL file with a column `text`; or a data set
            of the Hugging Face hub with a split `test`, such as "EleutherAI/lambada_openai".

    Raises:
        ValueError: if there is no such set.
    """
    if not Path(source).exists():
        source = str(SHIPPED_SETS.get(source, source))
    corpus = Corpus(source=source, split="test")
    return corpus.documents()[corpus.text_field]


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    return statistics.stdev([float(value) for value in values]) / math.sqrt(len(values))
