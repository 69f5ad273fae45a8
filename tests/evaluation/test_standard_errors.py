"""Standard errors of scores are those of resampled texts."""

import math

import pytest
import torch

from fewstep.evaluation.conditional_perplexity import conditional_perplexity
from fewstep.evaluation.generative_perplexity import GenerativePerplexity, generative_perplexity
from fewstep.evaluation.judge import Judge

NUM_TEXTS, RESAMPLES = 100, 4000
WORDS = ["state", "union", "free", "people", "peace", "nations", "commerce", "honest", "all", "seven"]


def texts(seed: int) -> list[str]:
    """Return texts of 4 to 20 random words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 21, (NUM_TEXTS,), generator=generator).tolist()
    drawn = [torch.randint(0, len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    return ["".join(f" {WORDS[word]}" for word in one) for one in drawn]


def resampled(measured: GenerativePerplexity) -> dict[str, float]:
    """Return the scatter of each score over resampled texts; resampling divides by n."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, NUM_TEXTS, (RESAMPLES, NUM_TEXTS), generator=generator)
    nats, tokens, num_bytes = (
        torch.tensor(values, dtype=torch.float64)[chosen]
        for values in (measured.nats, measured.num_tokens, measured.num_bytes)
    )
    scores = {
        "perplexity": (nats.sum(1) / tokens.sum(1)).exp(),
        "sample_mean_perplexity": (nats / tokens).mean(1).exp(),
        "bits_per_byte": nats.sum(1) / num_bytes.sum(1) / math.log(2),
    }
    factor = math.sqrt(NUM_TEXTS / (NUM_TEXTS - 1))
    return {name: values.std().item() * factor for name, values in scores.items()}


@pytest.mark.parametrize("kind", ["generative", "conditional"])
def test_standard_errors_are_those_of_resampled_texts(judge: Judge, kind: str) -> None:
    if kind == "generative":
        measured = generative_perplexity(texts(1), judge)
    else:
        measured = conditional_perplexity(["We hold that"] * NUM_TEXTS, texts(2), judge)
    for name, scatter in resampled(measured).items():
        assert getattr(measured, f"{name}_standard_error") == pytest.approx(scatter, rel=0.06), name
