"""The harness's own evaluation of local tasks, against what a few lines make of the same model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation.harness import HarnessModel, harness
from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel
from tests.conftest import randomize
from tests.evaluation.text_models import (
    SHAPE,
    masked_log_probabilities,
    next_token_log_probabilities,
    small_autoregressive,
    small_denoiser,
)
from tests.reference import exact_bound

CHOICES = [" and", " a free", " is so", " with"]
QUESTIONS = [
    {"question": question, "choices": CHOICES, "answer": answer}
    for question, answer in [
        ("We hold that", 1), ("The state of the union", 2), ("Peace", 0), ("Four", 3), ("Seven", 1),
        ("Commerce", 0), ("Nations of all", 2), ("It will grow", 3), ("Friendship", 2), ("A token", 0),
    ]
]  # fmt: skip
TASK = """
task: proverbs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """What knows a multiple-choice task, from a directory of its YAML file and its examples."""
    directory = tmp_path_factory.mktemp("tasks")
    file = directory / "proverbs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (directory / "proverbs.yaml").write_text(TASK.format(file=file))
    return TaskManager(include_path=str(directory), include_defaults=False)


def log_likelihood(model: TextModel, context: str, target: str) -> float:
    """log p(target | context), exact, or the exact bound on it."""
    ids = encode(model.tokenizer, context + target)
    start = len(encode(model.tokenizer, context))
    if not model.is_denoiser:
        return next_token_log_probabilities(model, ids)[start:].sum().item()
    return -exact_bound(
        lambda rest: masked_log_probabilities(model, ids[:start], rest), torch.tensor(ids[start:]), 280
    )


def accuracy(model: TextModel) -> float:
    """Share of questions whose answer is the likeliest choice."""
    right = 0
    for row in QUESTIONS:
        values = [log_likelihood(model, row["question"], choice) for choice in CHOICES]
        right += values.index(max(values)) == row["answer"]
    return right / len(QUESTIONS)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in arguments]


@pytest.mark.parametrize("make", [small_denoiser, small_autoregressive])
def test_multiple_choice_is_decided_by_the_likeliest_choice(
    make: Callable[[PreTrainedTokenizerBase], TextModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskManager,
) -> None:
    model = make(tokenizer)
    expected = accuracy(model)
    assert 0 < expected < 1
    found = harness(model, ["proverbs"], task_manager=tasks)["proverbs"]
    assert found["acc,none"] == pytest.approx(expected)
    assert found["acc_stderr,none"] == pytest.approx(math.sqrt(expected * (1 - expected) / 9))


def test_the_harness_finds_the_model_by_name(
    tokenizer: PreTrainedTokenizerBase, tasks: TaskManager, tmp_path: Path
) -> None:
    network = Denoiser(DenoiserConfig(**SHAPE))
    randomize(network, seed=3)
    save_checkpoint(tmp_path / "model", network, tokenizer, {})
    found = lm_eval.simple_evaluate(
        model="fewstep",
        model_args=f"pretrained={tmp_path / 'model'},mc_num=40",
        batch_size=2,
        tasks=["proverbs"],
        task_manager=tasks,
    )
    assert found is not None
    model = small_denoiser(tokenizer)
    assert found["results"]["proverbs"]["acc,none"] == pytest.approx(accuracy(model))
    for sample in found["samples"]["proverbs"]:
        question = QUESTIONS[sample["doc_id"]]["question"]
        values = [response[0][0] for response in sample["resps"]]
        assert values == pytest.approx([log_likelihood(model, question, one) for one in CHOICES], rel=1e-4)


@pytest.mark.parametrize("make", [small_denoiser, small_autoregressive])
def test_rolling_likelihood_is_the_sum_over_windows(
    make: Callable[[PreTrainedTokenizerBase], TextModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    """The bound of a window of 32 tokens is estimated; that of a short text is exact."""
    model = make(tokenizer)
    short, long = "Four and", "We hold that a free people governs itself, and so it shall be."
    lm = HarnessModel(model, mc_num=400, batch_size=200)
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (short,), (long,), ("",)))
    assert found[0] == pytest.approx(log_likelihood(model, "", short), rel=1e-5)
    assert found[2] == 0.0
    ids = encode(tokenizer, long)
    assert 32 < len(ids) <= 64
    if not model.is_denoiser:
        windows = [next_token_log_probabilities(model, part).sum().item() for part in (ids[:32], ids[32:])]
        assert found[1] == pytest.approx(sum(windows), rel=1e-5)
    else:
        other = HarnessModel(model, mc_num=400, batch_size=200, seed=1)
        assert other.loglikelihood_rolling(requests("x", (long,)))[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("make", [small_denoiser, small_autoregressive])
def test_generated_text_follows_the_context_up_to_a_stop(
    make: Callable[[PreTrainedTokenizerBase], TextModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make(tokenizer)
    context = "The state of"
    start = len(encode(tokenizer, context))
    whole = model.generate(prompt=context, length=32, temperature=0.0).tokens[0]
    lm = HarnessModel(model)
    (text,) = lm.generate_until(requests("generate_until", (context, {"max_gen_toks": 6, "until": []})))
    assert text == model.decode(whole[start : start + 6]) and len(text) > 1
    stop = text[-1]
    for until in (stop, ["~~", stop]):
        settings = {"max_gen_toks": 6, "until": until}
        (stopped,) = lm.generate_until(requests("generate_until", (context, settings)))
        assert stopped == text[: text.index(stop)]


@pytest.mark.parametrize("make", [small_denoiser, small_autoregressive])
def test_contexts_of_different_lengths_and_settings_are_written_together(
    make: Callable[[PreTrainedTokenizerBase], TextModel],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One batch of four, and one for the request that draws its tokens; each text as it is alone."""
    model = make(tokenizer)
    greedy = {"max_gen_toks": 6, "until": []}
    drawn = {**greedy, "do_sample": True, "temperature": 0.7}
    asked = [("The", greedy), ("We hold that", greedy), ("The", drawn), ("Peace", greedy), ("Four", greedy)]
    sizes = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: sizes.append(given["prompt"]) or generate(**given))
    texts = HarnessModel(model).generate_until(requests("generate_until", *asked))
    assert sizes == [["The", "We hold that", "Peace", "Four"], ["The"]]
    for prompts in sizes:
        found = generate(prompt=prompts, length=32, temperature=0.7 if prompts == ["The"] else 0.0).tokens
        for prompt, tokens in zip(prompts, found, strict=True):
            start = len(encode(tokenizer, prompt))
            number = 2 if prompts == ["The"] else [context for context, _ in asked].index(prompt)
            assert texts[number] == model.decode(tokens[start : start + 6])


def test_a_context_too_long_loses_its_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small_denoiser(tokenizer)
    context = "We hold that a free people governs itself, and so it shall be."
    (text,) = HarnessModel(model).generate_until(
        requests("generate_until", (context, {"max_gen_toks": 8, "until": []}))
    )
    kept = tokenizer.decode(encode(tokenizer, context)[-24:])
    assert kept + text == model.generate(prompt=kept, length=32, temperature=0.0).texts[0]


def test_what_the_harness_does_not_know_is_refused(
    tokenizer: PreTrainedTokenizerBase, tasks: TaskManager
) -> None:
    model = small_denoiser(tokenizer)
    with pytest.raises(ValueError, match="the harness has no such task: 'proverb'; name one") as caught:
        harness(model, ["proverbs", "proverb"], task_manager=tasks)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none is given"):
        harness(model, [], task_manager=tasks)
    with pytest.raises(ValueError, match="batch_size is 'auto'; it must be a number"):
        HarnessModel(model, batch_size="auto")
