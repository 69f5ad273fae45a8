"""Conditional perplexity: only the continuation counts, as in a few-line computation, merges and all."""

import math
from typing import Any

import pytest

from fewstep.evaluation.conditional_perplexity import conditional_perplexity
from fewstep.evaluation.generative_perplexity import generative_perplexity
from fewstep.evaluation.judge import Judge, load_judge
from tests.evaluation.reference import plain_nats, tokens_of

PROMPTS = ["The state of the union", "We hold", "Peace —", ""]
CONTINUATIONS = [" is strong.", " that a free people governs itself.", " and café", "x"]


def split(judge: Judge, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens before the first one that has a character of the continuation, and the others."""
    encoded = judge.tokenizer(prompt + continuation, add_special_tokens=False, return_offsets_mapping=True)
    count = sum(end <= len(prompt) for _, end in encoded["offset_mapping"])
    return encoded["input_ids"][:count], encoded["input_ids"][count:]


def plain(judge: Judge) -> tuple[list[float], list[int]]:
    """Return nats and tokens of each continuation, one pair through the judge at a time."""
    pairs = [split(judge, a, b) for a, b in zip(PROMPTS, CONTINUATIONS, strict=True)]
    return [plain_nats(judge, tokens, context) for context, tokens in pairs], [len(b) for _, b in pairs]


def test_smollm2_agrees_with_the_plain_computation() -> None:
    judge = load_judge()
    nats, num_tokens = plain(judge)
    measured = conditional_perplexity(PROMPTS, CONTINUATIONS, judge)
    assert measured.num_tokens == tuple(num_tokens)
    assert measured.perplexity == pytest.approx(math.exp(sum(nats) / sum(num_tokens)), rel=1e-5)
    shuffled = conditional_perplexity([PROMPTS[1], PROMPTS[0]], CONTINUATIONS[:2], judge)
    assert sum(measured.nats[:2]) < sum(shuffled.nats) - 1


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_only_the_continuation_counts_in_any_batch(judge: Judge, batch_tokens: int) -> None:
    nats, num_tokens = plain(judge)
    measured = conditional_perplexity(PROMPTS, CONTINUATIONS, judge, batch_tokens=batch_tokens)
    assert measured.nats == pytest.approx(nats, rel=1e-5)
    assert measured.num_tokens == tuple(num_tokens)
    assert measured.num_bytes == (11, 35, 10, 1)


def test_the_chain_rule_holds(judge: Judge) -> None:
    whole = generative_perplexity([PROMPTS[0] + CONTINUATIONS[0]], judge).nats[0]
    prompt = generative_perplexity([PROMPTS[0]], judge).nats[0]
    continuation = conditional_perplexity(PROMPTS[:1], CONTINUATIONS[:1], judge).nats[0]
    assert prompt + continuation == pytest.approx(whole, rel=1e-5)


def test_without_a_prompt_it_is_the_generative_perplexity(judge: Judge) -> None:
    alone = conditional_perplexity([""] * 4, CONTINUATIONS, judge)
    assert alone == generative_perplexity(CONTINUATIONS, judge)


def test_a_token_that_reaches_over_the_boundary_counts_as_a_whole(judge: Judge) -> None:
    prompt, continuation = "The s", "tate of the union"
    context, tokens = split(judge, prompt, continuation)
    assert context == tokens_of(judge, "The")
    assert "s" in judge.tokenizer.decode(tokens[:1])
    measured = conditional_perplexity([prompt], [continuation], judge)
    assert measured.nats[0] == pytest.approx(plain_nats(judge, tokens, context), rel=1e-5)
    assert (measured.num_tokens[0], measured.num_bytes[0]) == (len(tokens), 17)


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([], [], "pass one or more continuations"),
        (["a"], ["b", "c"], "there are 1 prompts and 2 continuations"),
        (["a", "b"], ["c", ""], "continuation 1 of 2 is empty"),
        (["a", "b " * 80], ["c", "d " * 60], "and continuation 1 are .* 'random', which reads 128 at once"),
    ],
)
def test_bad_input_is_refused(judge: Judge, prompts: Any, continuations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional_perplexity(prompts, continuations, judge)
