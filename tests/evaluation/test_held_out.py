"""Held-out text: contexts and passages are pieces of the documents that training left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.packing import tokenize_corpus
from fewstep.evaluation.held_out import Continuations, HeldOut
from fewstep.sampling.constraints import encode

WANTED = Continuations(num_prompts=4, per_prompt=3, prompt_length=8, length=6)


def held_out(corpus_file: Path, **changed: Any) -> HeldOut:
    return HeldOut(**{"corpus": Corpus(source=str(corpus_file)), "fraction": 0.2} | changed)


def documents(corpus_file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]


def test_contexts_are_those_that_training_validates_on(
    corpus_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = Corpus(source=str(corpus_file))
    split = tokenize_corpus(corpus, tokenizer, validation_fraction=0.2, context_length=16)
    own = held_out(corpus_file, num_contexts=3, context_length=16).contexts(tokenizer)
    assert own.tolist() == split.held_out(context_length=16, max_contexts=3).tolist()
    everything = held_out(corpus_file, fraction=1, num_contexts=10**6, context_length=16).contexts(tokenizer)
    tokens = [
        id for text in documents(corpus_file) for id in [*encode(tokenizer, text), tokenizer.eos_token_id]
    ]
    assert everything.flatten().tolist() == tokens[: len(everything) * 16]
    assert len(everything) == len(tokens) // 16


def test_passages_are_pieces_of_one_held_out_document(
    corpus_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = documents(corpus_file)
    kept_out = [text for i, text in enumerate(texts) if int((i + 1) * 0.2) > int(i * 0.2)]
    passages = held_out(corpus_file).passages(tokenizer, WANTED)
    assert len(passages) == 4
    for passage in passages:
        assert len(encode(tokenizer, passage.prompt)) == 8
        assert any(passage.prompt + passage.continuation in text for text in kept_out)
        assert len(encode(tokenizer, passage.prompt + passage.continuation)) == 14


def test_each_prompt_is_continued_several_times(
    corpus_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    passages = held_out(corpus_file).passages(tokenizer, WANTED)
    prompts = WANTED.prompts(passages)
    assert prompts == [passages[i // 3].prompt for i in range(12)]
    groups = WANTED.groups([str(number) for number in range(12)])
    assert groups == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10", "11"]]


def test_too_little_text_is_refused(corpus_file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    wanted = Continuations(num_prompts=1000, prompt_length=8, length=6)
    with pytest.raises(
        ValueError, match=r"has \d+ passages of 14 tokens, and continuations.num_prompts is 1000"
    ):
        held_out(corpus_file).passages(tokenizer, wanted)
    with pytest.raises(ValueError, match="less than one context of 5000"):
        held_out(corpus_file, context_length=5000).contexts(tokenizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeldOut(fraction=0), "held_out.fraction is 0; it must be above 0 and at most 1"),
        (lambda: HeldOut(num_contexts=0), "held_out.num_contexts and held_out.context_length must be"),
        (lambda: Continuations(per_prompt=0), "continuations.per_prompt is 0; it must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
