"""A comparison: its rows are what each model and the judge give alone; its arithmetic is by hand."""

import math
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.evaluation.comparison import Row, compare
from fewstep.evaluation.generative_perplexity import GenerativePerplexity
from fewstep.evaluation.judge import Judge
from fewstep.evaluation.samples import Samples
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import TextModel

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "condition_size": 8,
}
SAMPLES = Samples(num_samples=4, batch_size=2, length=20, seed=3)


@pytest.fixture
def models(tokenizer: PreTrainedTokenizerBase) -> dict[str, TextModel]:
    torch.manual_seed(0)
    denoiser, autoregressive = (
        Denoiser(DenoiserConfig(**SHAPE)),
        AutoregressiveLM(AutoregressiveConfig(**SHAPE)),
    )
    for parameter in [*denoiser.parameters(), *autoregressive.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return {"a": TextModel(denoiser, tokenizer), "b": TextModel(autoregressive, tokenizer)}


@pytest.fixture
def judge(tokenizer: PreTrainedTokenizerBase) -> Judge:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=281,
        initializer_range=0.5,
    )
    return Judge(LlamaForCausalLM(config).eval(), tokenizer, "random", prefix_token_id=0)


def plain_judgement(judge: Judge, texts: list[str]) -> tuple[float, float]:
    """Return perplexity and bits per byte of `texts`, each alone through the model."""
    nats, num_tokens = 0.0, 0
    for text in texts:
        ids = judge.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = judge.model(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
        num_tokens += len(ids)
    return math.exp(nats / num_tokens), nats / math.log(2) / sum(len(text.encode()) for text in texts)


def plain_entropy(tokens: list[int]) -> float:
    return -sum(n / len(tokens) * math.log(n / len(tokens)) for n in Counter(tokens).values())


def test_rows_are_what_each_model_and_the_judge_give_alone(
    models: dict[str, TextModel], judge: Judge
) -> None:
    rows = compare(models, judge, steps=[2, 8], samples=SAMPLES)
    assert [(row.model, row.steps) for row in rows] == [("a", 2), ("a", 8), ("b", None)]
    for row in rows:
        batches = [
            models[row.model].generate(2, length=20, num_steps=row.steps, seed=seed) for seed in (6, 7)
        ]
        texts = [text for batch in batches for text in batch.texts]
        assert row.texts == tuple(texts)
        assert len(set(texts)) == 4
        perplexity, bits_per_byte = plain_judgement(judge, texts)
        record = row.record()
        assert record["gen_ppl"] == pytest.approx(perplexity, rel=1e-4)
        assert record["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-4)
        entropies = [plain_entropy(tokens) for batch in batches for tokens in batch.tokens]
        assert record["entropy"] == pytest.approx(sum(entropies) / 4)
        assert len(row.batch_seconds) == 2
        assert record["seconds"] > 0
    assert [row.num_forwards for row in rows] == [2, 8, 20]
    assert [row.full_passes for row in rows] == pytest.approx([2, 8, 1], rel=0.15)


def test_each_refresh_interval_has_its_rows(models: dict[str, TextModel], judge: Judge) -> None:
    rows = compare(models, judge, steps=[4, 8], cache_refreshes=[1, 0], samples=SAMPLES)
    expected = [("a", 4, 1), ("a", 4, 0), ("a", 8, 1), ("a", 8, 0), ("b", None, None)]
    assert [(row.model, row.steps, row.cache_refresh) for row in rows] == expected
    for row in rows[:4]:
        batches = [
            models["a"].generate(
                2, length=20, num_steps=row.steps, cache_refresh=row.cache_refresh, seed=seed
            )
            for seed in (6, 7)
        ]
        assert row.texts == tuple(text for batch in batches for text in batch.texts)
        assert row.full_passes == pytest.approx(sum(batch.full_passes for batch in batches) / 2)
    assert rows[3].full_passes < 4 < rows[2].full_passes


def test_seconds_are_the_median_and_the_error_that_of_the_mean() -> None:
    judged = GenerativePerplexity(
        nats=(math.log(4) * 2, math.log(4) * 2), num_tokens=(2, 2), num_bytes=(4, 4)
    )
    row = Row(
        model="a",
        steps=None,
        cache_refresh=None,
        texts=("x", "y"),
        entropies=(1.0, 2.0),
        batch_seconds=(1.0, 9.0, 2.0),
        num_forwards=8,
        full_passes=1.0,
        judged=judged,
    )
    assert row.record() == {
        "model": "a",
        "steps": None,
        "cache_refresh": None,
        "full_passes": 1.0,
        "gen_ppl": pytest.approx(4.0),
        "bits_per_byte": pytest.approx(1.0),
        "entropy": 1.5,
        "seconds": 2.0,
    }
    assert row.entropy_standard_error == pytest.approx(0.5)


def test_progress_rises_to_the_end_of_each_activity(models: dict[str, TextModel], judge: Judge) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    compare(
        models,
        judge,
        steps=[2, 8],
        samples=SAMPLES,
        progress=lambda activity, done, total: seen.setdefault(activity, []).append((done, total)),
    )
    assert list(seen) == ["generating", "judging"]
    assert seen["generating"] == [(done, 60) for done in (0, 2, 4, 12, 20, 40, 60)]
    done = [done for done, _ in seen["judging"]]
    assert done == sorted(done)
    assert (done[0], seen["judging"][-1]) == (0, (12, 12))


def test_different_seeds_share_no_batch() -> None:
    seeds = [
        seed for first in range(5) for seed in Samples(num_samples=6, batch_size=2, seed=first).batch_seeds
    ]
    assert seeds == list(range(15))


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 1), (1, 0), (6, 4)])
def test_samples_that_make_no_equal_batches_are_refused(num_samples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"num_samples.*{num_samples}"):
        Samples(num_samples=num_samples, batch_size=batch_size)


def test_nothing_to_compare_is_refused(models: dict[str, TextModel], judge: Judge) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({"a": models["a"]}, judge, steps=[], samples=SAMPLES)
