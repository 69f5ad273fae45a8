"""Prompts with responses: which tokens are given, which are learned, and what a batch holds."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data.chat import rendered
from fewstep.data.corpora import Corpus
from fewstep.data.encoding import PairEncoder
from fewstep.data.packing import tokenize_corpus
from fewstep.data.pairs import PairLoader, Pairs
from fewstep.data.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PAIRS = [("We hold", " that a free people"), ("The", " state"), ("Four score and", " seven years ago")]


@pytest.fixture
def chat_tokenizer(tokenizer_directory: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(tokenizer_directory)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def corpus(path: Path, rows: list[dict[str, Any]], **fields: str) -> Corpus:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(source=str(path), **(fields or {"prompt_field": "q", "response_field": "a"}))


def questions(path: Path, pairs: list[tuple[str, str]] = PAIRS) -> Corpus:
    return corpus(path, [{"q": q, "a": a, "id": 1} for q, a in pairs])


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def expected(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> list[int]:
    given = [-1 - token for token in ids(tokenizer, prompt)]
    return [*given, *ids(tokenizer, response), tokenizer.eos_token_id]


def test_prompts_are_given_and_responses_end_with_the_separator(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    other = questions(tmp_path / "b.jsonl", [("Commerce,", " peace")])
    pairs = questions(tmp_path / "a.jsonl", [*PAIRS, ("", "no prompt"), ("no response", "")])
    split = tokenize_corpus(pairs, tokenizer, validation_corpus=other, context_length=64)
    assert isinstance(split.training, Pairs) and isinstance(split.validation, Pairs)
    wanted = [expected(tokenizer, *pair) for pair in PAIRS]
    assert split.training.tokens.tolist() == [token for row in wanted for token in row]
    assert np.diff(split.training.starts).tolist() == [len(row) for row in wanted]
    assert split.validation.tokens.tolist() == expected(tokenizer, "Commerce,", " peace")


def test_the_last_message_is_the_response(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("user", "We hold"), ("assistant", "what?"), ("user", "that"), ("assistant", "a free people")]
    messages = [{"role": role, "content": content} for role, content in turns]
    chats = corpus(tmp_path / "a.jsonl", [{"chat": messages}], messages_field="chat")
    encode = PairEncoder(tokenizer=chat_tokenizer, corpus=chats)
    (row,) = encode(chats.rows()[:])
    prompt = "<user>We hold</user>\n<assistant>what?</assistant>\n<user>that</user>\n<assistant>"
    assert row.tolist() == expected(chat_tokenizer, prompt, "a free people</assistant>\n")
    assert rendered(chat_tokenizer, messages[:3], awaiting_answer=True) == prompt


def test_conversations_need_a_template_that_only_appends(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "We"}, {"role": "assistant", "content": "hold"}]
    chats = corpus(tmp_path / "a.jsonl", [{"chat": messages}], messages_field="chat")
    with pytest.raises(ValueError, match="no chat template; set its chat_template"):
        tokenize_corpus(chats, tokenizer, validation_corpus=chats, context_length=64)
    for template, message in (
        ("{{ messages | length }} turns", "changes a conversation's beginning"),
        ("{{ raise_exception('only one turn') }}", "refuses the messages: only one turn"),
    ):
        chat_tokenizer.chat_template = template
        with pytest.raises(ValueError, match=message):
            tokenize_corpus(chats, chat_tokenizer, validation_corpus=chats, context_length=64)


def test_special_tokens_of_a_template_are_tokens_and_masks_are_left_out(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    chat_tokenizer.chat_template = TEMPLATE.replace("</{{ m.role }}>\n", "<|endoftext|>")
    answers = ["a free people", "the <|mask|> of it"]
    rows = [
        {"chat": [{"role": "user", "content": "We"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    chats = corpus(tmp_path / "a.jsonl", rows, messages_field="chat")
    (row,) = PairEncoder(tokenizer=chat_tokenizer, corpus=chats)(chats.rows()[:])
    separator: Any = chat_tokenizer.eos_token_id
    beginning = [*ids(chat_tokenizer, "<user>We"), separator, *ids(chat_tokenizer, "<assistant>")]
    assert row.tolist() == [
        *(-1 - token for token in beginning), *ids(chat_tokenizer, "a free people"), separator, separator
    ]  # fmt: skip


def three_pairs(**settings: Any) -> Pairs:
    tokens = [~1, ~2, 3, 0, ~4, 5, 6, 0, ~7, ~8, ~9, 10, 11, 12, 13, 0]
    return Pairs(tokens=np.array(tokens, dtype=np.int32), separator=0, **settings)


@pytest.mark.parametrize(("learn_fill", "fill"), [(True, 0), (False, ~0)])
def test_rows_are_filled_with_separators(learn_fill: bool, fill: int) -> None:
    rows = three_pairs(learn_fill=learn_fill).rows(np.array([1, 0]), 6)
    assert rows.tolist() == [[~4, 5, 6, 0, fill, fill], [~1, ~2, 3, 0, fill, fill]]


def test_pairs_longer_than_a_context_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pairs = three_pairs(learn_fill=True)
    assert pairs.fitting(8).tolist() == [0, 1, 2] and not caplog.records
    with caplog.at_level(logging.WARNING, "fewstep"):
        assert pairs.fitting(7).tolist() == [0, 1]
    assert "1 of 3 pairs are longer than the context of 7 tokens" in caplog.text
    with pytest.raises(ValueError, match="none of 3 pairs of prompt and response fits into a context of 3"):
        pairs.fitting(3)
    assert pairs.spread(8, 2)[:, 0].tolist() == [~1, ~7]
    assert pairs.spread(8, 9).shape == (3, 8)


def test_each_epoch_deals_each_pair_once_as_a_function_of_the_training_step() -> None:
    loader = PairLoader(pairs=three_pairs(learn_fill=True), context_length=8, batch_size=2, seed=0)
    rows = torch.cat([loader.batch(step) for step in range(30)])
    epochs = [tuple(rows[3 * epoch : 3 * epoch + 3, 0].tolist()) for epoch in range(20)]
    assert all(sorted(epoch) == [~7, ~4, ~1] for epoch in epochs)
    assert len(set(epochs)) > 3
    again = PairLoader(pairs=three_pairs(learn_fill=True), context_length=8, batch_size=2, seed=0)
    assert torch.equal(again.batch(17), rows[34:36])
    larger = PairLoader(pairs=three_pairs(learn_fill=True), context_length=8, batch_size=5, seed=0)
    assert torch.equal(torch.cat([larger.batch(step) for step in range(12)]), rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_field": "q"}, "prompt_field and response_field go together"),
        (
            {"prompt_field": "q", "response_field": "a", "messages_field": "m"},
            "set messages_field or the two",
        ),
        ({"messages_field": "m", "streaming": True}, "leave out streaming"),
        ({"messages_field": "m", "detokenizer": "ptb"}, "leave out streaming and detokenizer"),
        ({"detokenizer": "none"}, "no detokenizer 'none'; choose one of wikitext"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corpus(**fields)


def test_missing_columns_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"q": "a", "b": "c"}]
    with pytest.raises(ValueError, match="has no column 'a'; set response_field to one of q, b"):
        corpus(tmp_path / "a.jsonl", rows, prompt_field="q", response_field="a").rows()
    text = Corpus(source=str(tmp_path / "a.jsonl"), text_field="q")
    pairs = corpus(tmp_path / "a.jsonl", rows, prompt_field="q", response_field="b")
    with pytest.raises(ValueError, match="both have prompts and responses, or neither"):
        tokenize_corpus(pairs, tokenizer, validation_corpus=text, context_length=4)
