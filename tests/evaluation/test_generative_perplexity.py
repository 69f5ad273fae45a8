"""Generative perplexity: equal to the plain computation, whatever the batches; arithmetic by hand."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.evaluation.generative_perplexity import GenerativePerplexity, generative_perplexity
from fewstep.evaluation.judge import Judge, load_judge

TEXTS = [
    "The state of the union is strong.",
    "Peace — and café.\n",
    "x",
    "Honest friendship with all nations; entangling alliances with none, I said.",
]
VOCABULARY = 281


@pytest.fixture
def judge(tokenizer: PreTrainedTokenizerBase) -> Judge:
    """A small judge with random weights, large enough that every token of context matters."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    return Judge(LlamaForCausalLM(config).eval(), tokenizer, "random", prefix_token_id=7)


def plain_nats(judge: Judge, tokens: list[int]) -> float:
    """Return the nats of `tokens`, one sequence through the model and nothing else."""
    with torch.no_grad():
        log_p = (
            judge.model(input_ids=torch.tensor([[judge.prefix_token_id, *tokens]])).logits[0].log_softmax(-1)
        )
    return -sum(log_p[i, token].item() for i, token in enumerate(tokens))


def tokens_of(judge: Judge, text: str) -> list[int]:
    return judge.tokenizer(text, add_special_tokens=False)["input_ids"]


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
    ],
)
def test_bad_input_is_refused(judge: Judge, texts: list[str], settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generative_perplexity(texts, judge, **settings)
