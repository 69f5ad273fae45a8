"""Generative perplexity: equal to the plain computation, whatever the batches; arithmetic by hand."""

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data.tokenizer import train_tokenizer
from fewstep.evaluation.generative_perplexity import (
    GenerativePerplexity,
    generative_perplexity,
    has_vocabulary_of,
    until_end_of_text,
)
from fewstep.evaluation.judge import Judge, load_judge
from tests.evaluation.reference import plain_nats, tokens_of

TEXTS = [
    "The state of the union is strong.",
    "Peace — and café.\n",
    "x",
    "Honest friendship with all nations; entangling alliances with none, I said.",
]
VOCABULARY = 281


def test_smollm2_agrees_with_the_plain_computation() -> None:
    judge = load_judge()
    texts = ["The state of the union is strong.", "union the of Strong state", "Yes."]
    measured = generative_perplexity(texts, judge)
    expected = [plain_nats(judge, tokens_of(judge, text)) for text in texts]
    assert measured.nats == pytest.approx(expected, rel=1e-5)
    assert measured.num_tokens == tuple(len(tokens_of(judge, text)) for text in texts)
    assert measured.perplexity == pytest.approx(math.exp(sum(expected) / sum(measured.num_tokens)), rel=1e-4)
    # Words in order are likelier than the same words shuffled.
    assert measured.nats[0] / measured.num_tokens[0] < measured.nats[1] / measured.num_tokens[1] - 1


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_the_result_does_not_depend_on_the_batches(judge: Judge, batch_tokens: int) -> None:
    expected = [plain_nats(judge, tokens_of(judge, text)) for text in TEXTS]
    measured = generative_perplexity(TEXTS, judge, batch_tokens=batch_tokens)
    assert measured.nats == pytest.approx(expected, rel=1e-5)
    reversed_order = generative_perplexity(TEXTS[::-1], judge, batch_tokens=batch_tokens)
    assert reversed_order.nats[::-1] == pytest.approx(expected, rel=1e-5)


def test_batches_hold_at_most_batch_tokens_of_similar_length(judge: Judge) -> None:
    shapes = []
    judge.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    long = len(tokens_of(judge, TEXTS[0]))
    assert long > 6
    generative_perplexity(["x", TEXTS[0]] * 6, judge, batch_tokens=2 * long + 1)
    assert shapes == [(2, long)] * 3 + [(6, 1)]


def test_a_long_text_is_scored_in_windows_each_begun_from_the_prefix(judge: Judge) -> None:
    tokens = tokens_of(judge, TEXTS[3])
    windows = [tokens[start : start + 4] for start in range(0, len(tokens), 4)]
    assert len(windows) > 2
    measured = generative_perplexity([TEXTS[2], TEXTS[3]], judge, max_length=5)
    assert measured.nats[1] == pytest.approx(sum(plain_nats(judge, window) for window in windows), rel=1e-5)
    assert measured.num_tokens[1] == len(tokens)


def test_windows_are_by_default_what_the_judge_can_read(judge: Judge) -> None:
    text = "many words " * 60
    tokens = tokens_of(judge, text)
    assert len(tokens) > 127
    expected = sum(plain_nats(judge, tokens[start : start + 127]) for start in range(0, len(tokens), 127))
    assert generative_perplexity([text], judge).nats == pytest.approx((expected,), rel=1e-5)


def test_a_judge_that_knows_nothing_finds_its_vocabulary(judge: Judge) -> None:
    torch.nn.init.zeros_(judge.model.lm_head.weight)
    measured = generative_perplexity(TEXTS, judge)
    assert measured.perplexity == pytest.approx(VOCABULARY, rel=1e-5)
    assert measured.sample_mean_perplexity == pytest.approx(VOCABULARY, rel=1e-5)
    assert measured.num_bytes == (33, 21, 1, 75)  # a dash of three bytes and an accent of two
    tokens = sum(len(tokens_of(judge, text)) for text in TEXTS)
    assert measured.bits_per_byte == pytest.approx(tokens * math.log2(VOCABULARY) / 130, rel=1e-5)


def test_tokens_are_read_as_they_are(judge: Judge) -> None:
    tokens = [tokens_of(judge, text) for text in TEXTS]
    assert generative_perplexity(TEXTS, judge, tokens=tokens) == generative_perplexity(TEXTS, judge)
    # The same text in single bytes, which no tokenizer would choose.
    tokens[0] = judge.tokenizer.convert_tokens_to_ids(["T", "h", "e"])
    measured = generative_perplexity(["The", *TEXTS[1:]], judge, tokens=tokens)
    assert measured.nats[0] == pytest.approx(plain_nats(judge, tokens[0]), rel=1e-5)
    assert (measured.num_tokens[0], measured.num_bytes[0]) == (3, 3)


def test_a_judge_has_the_vocabulary_of_its_tokenizer_and_of_no_other(
    judge: Judge, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert has_vocabulary_of(judge, tokenizer)
    assert not has_vocabulary_of(judge, train_tokenizer(["other words, other pairs"] * 9, vocab_size=270))


def test_a_text_ends_at_the_first_end_of_text_token_behind_something() -> None:
    assert until_end_of_text([5, 6, 0, 7, 0], 0) == [5, 6]
    assert until_end_of_text([0, 0, 5, 6, 0, 7], 0) == [5, 6]
    assert until_end_of_text([5, 6], 0) == [5, 6]
    assert until_end_of_text([0, 0], 0) == []


def test_scores_by_hand() -> None:
    # 2 nats a token over 4 tokens, 5 nats a token over 2.
    measured = GenerativePerplexity(nats=(8.0, 10.0), num_tokens=(4, 2), num_bytes=(16, 8))
    assert measured.perplexity == pytest.approx(math.exp(3.0))
    assert measured.sample_mean_perplexity == pytest.approx(math.exp(3.5))
    assert measured.bits_per_byte == pytest.approx(18 / 24 / math.log(2))
    # Residuals from the ratio 3: 8 - 12 = -4 and 10 - 6 = 4; variance 32, times n, over 6 tokens.
    assert measured.perplexity_standard_error == pytest.approx(math.exp(3.0) * 8 / 6)
    # Losses 2 and 5: standard deviation 3 / sqrt 2, over sqrt 2.
    assert measured.sample_mean_perplexity_standard_error == pytest.approx(math.exp(3.5) * 1.5)
    # Residuals from the ratio 3/4: -4 and 4 again, over 24 bytes.
    assert measured.bits_per_byte_standard_error == pytest.approx(8 / 24 / math.log(2))


def test_one_text_has_no_standard_error() -> None:
    measured = GenerativePerplexity(nats=(8.0,), num_tokens=(4,), num_bytes=(16,))
    assert math.isnan(measured.perplexity_standard_error)
    assert math.isnan(measured.bits_per_byte_standard_error)


def test_progress_counts_tokens_to_the_end(judge: Judge) -> None:
    reports = []
    measured = generative_perplexity(
        TEXTS, judge, batch_tokens=1, progress=lambda done, total: reports.append((done, total))
    )
    total = sum(measured.num_tokens)
    longest_first = sorted(measured.num_tokens, reverse=True)
    assert reports == [(sum(longest_first[:count]), total) for count in range(1, len(TEXTS) + 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(judge: Judge, value: float) -> None:
    token = tokens_of(judge, TEXTS[2])[0]
    with torch.no_grad():
        judge.model.model.embed_tokens.weight[token] = value
    # Only what follows this token is damaged, and only text 1 has more behind it.
    with pytest.raises(ValueError, match="'random' returned logits that are not finite for text 1;"):
        generative_perplexity(["yes", "xx", "x"], judge)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "pass a list of one or more generated texts"),
        ("a text", {}, "pass a list of one or more generated texts"),
        (["a", "", "b"], {}, "text 1 of 3 is empty; leave empty texts out"),
        (["a"], {"max_length": 1}, "max_length is 1; the judge 'random' reads between 2 and 128 "),
        (["a"], {"max_length": 129}, "max_length is 129; the judge 'random' reads between 2 and 128 "),
        (["a"], {"batch_tokens": 0}, "batch_tokens is 0; it must be at least 1"),
        (["a"], {"tokens": [[1], [2]]}, "there are 1 texts and tokens of 2"),
        (["a", "b"], {"tokens": [[1], []]}, "text 1 of 2 is empty"),
        (["a", "b"], {"tokens": [[1], [300, 281]]}, "token 300 is none of the 281 that the judge 'random'"),
    ],
)
def test_bad_input_is_refused(judge: Judge, texts: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generative_perplexity(texts, judge, **settings)
