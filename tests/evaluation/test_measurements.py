"""Metrics by name: what work they need, and how what cannot be measured is refused."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation import measurements
from fewstep.evaluation.diversity import self_bleu
from fewstep.evaluation.evaluation_report import METRICS as TITLES
from fewstep.evaluation.generative_perplexity import generative_perplexity
from fewstep.evaluation.held_out import Continuations, HeldOut, Passage
from fewstep.evaluation.lambada import lambada
from fewstep.evaluation.mauve import mauve
from fewstep.evaluation.measurements import METRICS, Subject, measurements_of
from fewstep.evaluation.samples import Samples, Written
from fewstep.evaluation.sources import Sources
from fewstep.sampling.text_model import load
from tests.evaluation.tiny_models import save_tiny_models

TEXTS = ["We hold that", "a free people", "The state of", "the union is"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return save_tiny_models(tmp_path_factory.mktemp("models"), tokenizer)


def subject(models: dict[str, str], tokens: list[list[int]], **changed: Any) -> Subject:
    model = load(models["denoiser"])
    settings: dict[str, Any] = {
        "samples": Samples(), "continuations": Continuations(num_prompts=2, per_prompt=2),
        "held_out": HeldOut(),
        "passages": [Passage(prompt=prompt, continuation=" x") for prompt in ("We", "The")], "cloze": [],
        "judge_name": models["judge"], "featurizer": "smollm2", "after_end": "keep", "device": "cpu",
    }  # fmt: skip
    written = Written(
        texts=tuple(model.decode(ids) for ids in tokens), tokens=tuple(map(tuple, tokens)),
        seconds_per_sample=0.5, num_forwards=3, full_passes=2.5,
    )  # fmt: skip
    return Subject(model=model, written=written, sources=Sources(**settings | changed))


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_metrics_of_the_same_work_are_measured_together() -> None:
    assert [one.name for one in measurements_of(["bits_per_byte", "gen_ppl"])] == ["judged"]
    assert [one.name for one in measurements_of(["lambada_ppl", "entropy"])] == ["diversity", "lambada"]
    assert len(METRICS) == len(set(METRICS))


def test_every_metric_has_a_title_in_the_report() -> None:
    assert set(TITLES) == set(METRICS)


def test_an_unknown_metric_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="no metric 'gen_pll'; did you mean 'gen_ppl'"):
        measurements_of(["entropy", "gen_pll"])
    with pytest.raises(ValueError, match="metrics is empty; name at least one of gen_ppl"):
        measurements_of([])


@pytest.mark.parametrize(("metric", "package"), [("mauve", "mauve"), ("self_bleu", "sacrebleu")])
def test_a_metric_without_its_package_is_refused_with_the_command(
    metric: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(measurements, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(
        ValueError, match=rf"{metric} needs .* '{package}', .* run: pip install 'fewstep\[eval\]'"
    ):
        measurements_of(["entropy", metric])


def test_text_behind_the_end_counts_only_if_it_is_kept(
    models: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokens_of(tokenizer, TEXTS[:2])
    end: Any = tokenizer.eos_token_id
    both = [[*ids[0], end, *ids[1]], ids[1]]
    dropped = subject(models, both, after_end="drop")
    expected = generative_perplexity(TEXTS[:2], dropped.sources.judge)
    values = measurements.judged(dropped)
    assert values["gen_ppl"] == pytest.approx(expected.perplexity)
    assert values["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
    kept = subject(models, both)
    texts = [TEXTS[0] + TEXTS[1], TEXTS[1]]
    expected = generative_perplexity(texts, kept.sources.judge, tokens=both)
    assert measurements.judged(kept)["gen_ppl"] == pytest.approx(expected.perplexity)


def test_empty_texts_are_left_out_and_nothing_else_is_refused(
    models: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    end: Any = tokenizer.eos_token_id
    ids = tokens_of(tokenizer, TEXTS[:1])
    alone, with_empty = (measurements.judged(subject(models, ids + more)) for more in ([], [[end, end]]))
    assert with_empty["gen_ppl"] == alone["gen_ppl"]
    assert math.isnan(float(alone["gen_ppl_standard_error"]))
    for measure in (measurements.judged, measurements.conditional):
        with pytest.raises(ValueError, match="is empty, so there is nothing to judge"):
            measure(subject(models, [[end]] * 4))


def test_self_bleu_compares_continuations_of_one_prompt(
    models: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    found = measurements.overlap(subject(models, tokens_of(tokenizer, TEXTS)))
    assert found == {"self_bleu": self_bleu([TEXTS[:2], TEXTS[2:]])}


def test_mauve_compares_prompts_with_their_two_continuations(
    models: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    passages = [Passage(prompt=f"We {n}", continuation=f" hold {n * n}") for n in range(20)]
    made = subject(
        models, tokens_of(tokenizer, TEXTS * 10), passages=passages, featurizer=models["judge"],
        continuations=Continuations(num_prompts=20, per_prompt=2),
    )  # fmt: skip
    generated = [f"We {n // 2}{text}" for n, text in enumerate(TEXTS * 10)]
    references = [f"We {n} hold {n * n}" for n in range(20)]
    expected = mauve(generated, references, featurizer=models["judge"])
    found = measurements.divergence_from_text(made)
    assert found["mauve"] == pytest.approx(expected.mean)
    assert found["mauve_standard_error"] == pytest.approx(expected.standard_error)
    assert found["mauve_name"] == "mauve_judge"


def test_last_words_are_those_of_the_passages(
    models: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    passages = ["We hold that a free", "The state of the union", "the union is strong"]
    made = subject(models, tokens_of(tokenizer, TEXTS), cloze=passages, samples=Samples(seed=4))
    expected = lambada(made.model, passages, seed=4)
    found = measurements.last_words(made)
    assert (found["lambada_accuracy"], found["lambada_ppl"]) == (expected.accuracy, expected.perplexity)


def test_what_was_timed_is_passed_on(models: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
    found = measurements.time(subject(models, tokens_of(tokenizer, TEXTS)))
    assert found == {"seconds_per_sample": 0.5, "full_passes": 2.5}


def test_a_judge_that_is_not_there_is_refused_before_any_work(models: dict[str, str], tmp_path: Path) -> None:
    from fewstep.evaluation.evaluate import evaluate

    output = tmp_path / "evaluation"
    with pytest.raises(ValueError, match="cannot load the judge 'no/judge'"):
        evaluate(models=(models["denoiser"],), metrics=("gen_ppl",), judge="no/judge", output=str(output))
    assert not output.exists()
