"""The cloze set: how text is cut, what a judge guesses, and which last words are kept.

The judge here has learned nothing and repeats: after a token it predicts what followed the same token the
last time. It guesses a word if the word before it was followed by the same word earlier in what it reads.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fewstep.data.corpora import Corpus
from fewstep.data.tokenizer import train_tokenizer
from fewstep.evaluation import cloze as cloze_module
from fewstep.evaluation.cloze import (
    Passage,
    cloze,
    common_words,
    cut,
    guessed,
    held_out_documents,
    shortened,
)
from fewstep.evaluation.judge import Judge
from fewstep.evaluation.lambada import load_passages
from fewstep.sampling.constraints import encode

CONTEXT = "The brave keeper lit his lantern. All went well."
PROVERBS = [
    f"A {kind} keeper lit the {thing}. Years went by at sea. In the end a {kind} keeper came, {tail}."
    for kind, thing, tail in [
        ("brave", "lantern", "and slept"),
        ("quiet", "harbour", "at dawn"),
        ("lonely", "window", "with bread"),
    ]
]


class Repeater(torch.nn.Module):
    """Predicts the token that followed the present one when it last stood earlier; otherwise token 0."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        (ids,) = input_ids.tolist()
        logits = torch.zeros(1, len(ids), 4096)
        for place, token in enumerate(ids):
            followers = [ids[i + 1] for i in range(place) if ids[i] == token]
            logits[0, place, followers[-1] if followers else 0] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    """A byte-level BPE in which the words of these tests are one token each."""
    return train_tokenizer([CONTEXT, *PROVERBS] * 50, vocab_size=700)


@pytest.fixture
def repeater(words: PreTrainedTokenizerFast) -> Judge:
    return Judge(Repeater(), words, "repeater", prefix_token_id=699)  # pyright: ignore


def spans(text: str, *parts: str) -> list[tuple[int, int]]:
    """Where each part last stands in `text`."""
    return [(text.rindex(part), text.rindex(part) + len(part)) for part in parts]


def test_passages_are_whole_sentences_and_do_not_overlap(words: PreTrainedTokenizerBase) -> None:
    text = "One two three. Four five!\n\nSix 'seven?' Eight. Nine ten eleven. Twelve"
    lengths = [len(encode(words, part)) + 1 for part in ("One two three.", "Four five!", "Six 'seven?'")]
    (first, *_) = cut(text, words, min_tokens=lengths[0] + 1, max_tokens=sum(lengths))
    assert first == Passage("One two three. Four five!\n\nSix 'seven?'", ((27, 39),))
    (first, *_) = cut(text, words, min_tokens=lengths[0], max_tokens=sum(lengths))
    assert [first.text[a:b] for a, b in first.sentences] == ["Four five!", "Six 'seven?'"]
    many = [passage.text for passage in cut("One two three. " * 40, words, min_tokens=1, max_tokens=40)]
    assert len(many) > 2
    assert " ".join(many) in "One two three. " * 40


def test_words_are_guessed_as_the_judge_predicts_them(repeater: Judge) -> None:
    text = "The brave keeper went. The brave keeper lit"
    assert guessed(repeater, text, spans(text, "brave", "keeper", "lit")) == [True, True, False]
    assert guessed(repeater, "The brave", spans("The brave", "brave")) == [False]
    part_of_a_token = (text.rindex("keeper"), text.rindex("keeper") + 3)
    assert guessed(repeater, text, [part_of_a_token]) == [False]


def test_the_last_word_that_needs_the_context_ends_the_passage(repeater: Judge) -> None:
    sentence = "And the brave keeper lit his pipe."
    text = f"{CONTEXT} {sentence}"
    passage = Passage(text, ((len(CONTEXT) + 1, len(text)),))
    assert shortened(passage, repeater, common=set()) == text[: text.rindex(" pipe")]
    assert shortened(passage, repeater, common={"his", "lit"}) == text[: text.rindex(" lit")]
    assert shortened(passage, repeater, common={"brave", "keeper", "lit", "his"}) is None


def test_a_word_that_its_sentence_gives_away_is_not_asked_for(repeater: Judge) -> None:
    text = f"{CONTEXT} So keeper lit his, keeper lit."
    assert guessed(repeater, text, [(len(text) - 4, len(text) - 1)]) == [True]
    kept = shortened(Passage(text, ((len(CONTEXT) + 1, len(text)),)), repeater, common=set())
    assert kept == f"{CONTEXT} So keeper lit his"


def test_a_word_that_is_new_is_not_asked_for(repeater: Judge) -> None:
    text = "The sun rose up. Night fell on all."
    assert shortened(Passage(text, ((17, len(text)),)), repeater, common=set()) is None


def test_common_words_are_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloze_module, "COMMON_WORDS", 2)
    assert common_words(["The end, the END", "of the don't"]) == {"the", "end"}


def test_held_out_documents_are_those_training_does_not_read(
    corpus_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = Corpus(source=str(corpus_file))
    documents = corpus.documents()["text"]
    held_out = held_out_documents(corpus, tokenizer, 0.05)
    assert [text for text in held_out if text] == [documents[19], documents[39], documents[59]]
    assert [text for text in held_out_documents(corpus, tokenizer, 1) if text] == list(documents)


def test_a_set_is_written_from_text_and_read_as_passages(
    repeater: Judge,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each proverb gives one passage: the keeper after his kind, which only the first sentence knows."""
    monkeypatch.setattr(cloze_module, "load_judge", lambda name: repeater)
    monkeypatch.setattr(cloze_module, "COMMON_WORDS", 0)
    words.save_pretrained(tmp_path / "words")
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROVERBS))
    settings = {
        "corpus": Corpus(source=str(source)),
        "tokenizer": str(tmp_path / "words"),
        "validation_fraction": 1,
        "min_tokens": 2,
    }
    path = cloze(str(tmp_path / "new" / "set.jsonl"), **settings)
    assert load_passages(str(path)) == [text[: text.rindex(" came")] for text in PROVERBS]
    fewer = load_passages(str(cloze(str(tmp_path / "fewer.jsonl"), max_passages=2, **settings)))
    assert len(fewer) == 2 and set(fewer) < set(load_passages(str(path)))
    with pytest.raises(ValueError, match=r"none of 0 passages .* needs the context"):
        cloze(str(tmp_path / "none.jsonl"), **{**settings, "min_tokens": 199})
    with pytest.raises(ValueError, match="max_passages is 0"):
        cloze(str(tmp_path / "none.jsonl"), max_passages=0, **settings)
