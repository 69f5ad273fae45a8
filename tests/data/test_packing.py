"""Packed tokens: documents in order with separators, made once, split without overlap."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fewstep.data.corpora import Corpus
from fewstep.data.packing import cache_directory, tokenize_corpus, tokenized
from fewstep.data.tokenizer import train_tokenizer, vocab_size, with_mask_token


def documents(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)})


def cached_files() -> set[Path]:
    return set(cache_directory().glob("tokens/*"))


def write(path: Path, texts: list[str]) -> Corpus:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(source=str(path))


def decoded(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The documents that `tokens` hold, each of which must end with the separator."""
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    assert ends[-1] == len(tokens) - 1
    pieces = np.split(np.asarray(tokens), ends + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def test_each_document_is_followed_by_the_separator(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"Document {i} — ü\n" * (i % 4 + 1) for i in range(300)]  # more than one batch of them
    tokens = tokenized(documents(*texts), "text", tokenizer)
    assert decoded(tokens, tokenizer) == texts
    assert tokens.dtype == np.uint16
    assert tokens.max() < vocab_size(tokenizer)


def test_no_special_tokens_are_added(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenized(documents("peace"), "text", tokenizer)
    expected = tokenizer("peace", add_special_tokens=False)["input_ids"]
    assert tokens.tolist() == [*expected, tokenizer.eos_token_id]


def test_text_that_spells_the_mask_is_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """The mask has no logit: as a token to predict it would be out of the head's range."""
    texts = ["web page with <|mask|> in it", "and <|endoftext|> too"]
    tokens = tokenized(documents(*texts), "text", tokenizer)
    assert tokens.max() < vocab_size(tokenizer)
    assert decoded(tokens, tokenizer) == texts


def test_large_vocabularies_have_wide_enough_tokens() -> None:
    words = {"<eos>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, 2**16 + 5)}
    word_level = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    large = with_mask_token(PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="<eos>"))
    tokens = tokenized(documents("w2 w65540"), "text", large)
    assert tokens.tolist() == [2, 65540, 0]


def test_second_call_reads_what_the_first_wrote(tokenizer: PreTrainedTokenizerBase) -> None:
    before = cached_files()
    first = tokenized(documents("read me twice"), "text", tokenizer)
    (path,) = cached_files() - before
    marked = np.array(first)
    marked[0] += 1
    np.save(path, marked)
    assert tokenized(documents("read me twice"), "text", tokenizer).tolist() == marked.tolist()
    assert cached_files() - before == {path}


def test_other_text_or_tokenizer_is_tokenized_anew(tokenizer: PreTrainedTokenizerBase) -> None:
    other = train_tokenizer(["read me twice " * 9], vocab_size=270)
    one = tokenized(documents("read", "me"), "text", tokenizer)
    assert tokenized(documents("rea", "dme"), "text", tokenizer).tolist() != one.tolist()
    assert decoded(tokenized(documents("read", "me"), "text", other), other) == ["read", "me"]
    assert len(tokenized(documents("read", "me"), "text", other)) < len(one)


def test_held_out_documents_are_not_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"Document number {i}." for i in range(47)]
    corpus = write(tmp_path / "rows.jsonl", texts)
    split = tokenize_corpus(corpus, tokenizer, validation_fraction=0.1, context_length=4)
    training, validation = decoded(split.training, tokenizer), decoded(split.validation, tokenizer)
    assert validation == [texts[i] for i in (9, 19, 29, 39)]
    assert training == [text for text in texts if text not in validation]


def test_few_documents_are_split_by_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = write(tmp_path / "rows.jsonl", ["free people " * 100, "and honest friendship " * 50])
    whole = tokenized(corpus.documents(), "text", tokenizer)
    split = tokenize_corpus(corpus, tokenizer, validation_fraction=0.2, context_length=8)
    assert np.concatenate([split.training, split.validation]).tolist() == whole.tolist()
    assert len(split.validation) == int(len(whole) * 0.2)


def test_validation_corpus_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = write(tmp_path / "train.jsonl", ["to train on"] * 30)
    other = write(tmp_path / "validate.jsonl", ["to validate on"])
    split = tokenize_corpus(corpus, tokenizer, validation_corpus=other, context_length=4)
    assert decoded(split.training, tokenizer) == ["to train on"] * 30
    assert decoded(split.validation, tokenizer) == ["to validate on"]


@pytest.mark.parametrize("texts", [["short"], ["short"] * 25])
def test_too_small_a_corpus_is_refused(
    texts: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = write(tmp_path / "rows.jsonl", texts)
    with pytest.raises(ValueError, match="less than one context of 512; give more text"):
        tokenize_corpus(corpus, tokenizer, context_length=512)


@pytest.mark.parametrize("fraction", [0.5, 0.7, 0.99])
def test_large_validation_fractions_leave_text_to_train_on(
    fraction: float, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = write(tmp_path / "rows.jsonl", [f"Document number {i}." for i in range(100)])
    split = tokenize_corpus(corpus, tokenizer, validation_fraction=fraction, context_length=4)
    share = len(split.validation) / (len(split.validation) + len(split.training))
    assert share == pytest.approx(fraction, abs=0.03)


def test_last_documents_are_held_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"Document number {i}." for i in range(30)]
    corpus = write(tmp_path / "rows.jsonl", texts)
    split = tokenize_corpus(corpus, tokenizer, held_out_documents=7, context_length=4)
    assert decoded(split.training, tokenizer) == texts[:23]
    assert decoded(split.validation, tokenizer) == texts[23:]
    for wrong, message in ((30, "the corpus has 30; hold out fewer"), (-1, "must be 0 or more")):
        with pytest.raises(ValueError, match=message):
            tokenize_corpus(corpus, tokenizer, held_out_documents=wrong, context_length=4)
    with pytest.raises(ValueError, match="leave them out, or the validation_corpus"):
        tokenize_corpus(corpus, tokenizer, validation_corpus=corpus, held_out_documents=1, context_length=4)


def test_text_is_detokenized(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, ["It does n't , he said .", "It 's N ."] * 20)
    corpus = Corpus(source=str(path), detokenizer="ptb")
    split = tokenize_corpus(corpus, tokenizer, validation_fraction=0.5, context_length=4)
    prose = {"It doesn't , he said .", "It's 1 ."}
    assert {*decoded(split.training, tokenizer), *decoded(split.validation, tokenizer)} == prose
    assert set(corpus.documents()["text"]) == prose
    plain = tokenize_corpus(Corpus(source=str(path)), tokenizer, validation_fraction=0.5, context_length=4)
    assert "It 's N ." in decoded(plain.validation, tokenizer)
