"""Tokenizers: any text comes back, V counts the real tokens, the mask is the id behind them."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fewstep.data.tokenizer import load_tokenizer, train_tokenizer, vocab_size, with_mask_token


def random_text(seed: int) -> str:
    """Characters of one to four UTF-8 bytes, control characters and spaces among them."""
    draw = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF), (32, 32)]
    return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(200))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces , and a comma .",
        "line\n\n\tline\r\n",
        "naïve café — 北京 🙂‍↔️ e\u0301",
        "don't 's 're",
        *(random_text(seed) for seed in range(20)),
    ],
)
def test_any_text_comes_back(
    text: str, tokenizer: PreTrainedTokenizerBase, tokenizer_directory: Path
) -> None:
    for one in (tokenizer, load_tokenizer(tokenizer_directory)):
        tokens = one(text, add_special_tokens=False)["input_ids"]
        assert one.decode(tokens) == text
        assert all(0 <= token < vocab_size(one) for token in tokens)


def test_vocabulary_is_all_but_the_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    assert vocab_size(tokenizer) == len(tokenizer) - 1 == 280
    assert tokenizer.mask_token_id == 280
    assert tokenizer.eos_token_id is not None and tokenizer.eos_token_id < 280


def test_saved_tokenizer_is_the_same(tokenizer: PreTrainedTokenizerBase, tokenizer_directory: Path) -> None:
    loaded = load_tokenizer(tokenizer_directory)
    text = "The state of the union is strong."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.mask_token_id, loaded.eos_token_id) == (tokenizer.mask_token_id, tokenizer.eos_token_id)
    assert len(loaded) == len(tokenizer)


def test_training_merges_frequent_pairs() -> None:
    trained = train_tokenizer(["banana " * 50], vocab_size=265)
    assert len(trained("banana banana")["input_ids"]) < 8
    assert vocab_size(trained) <= 265


def test_adding_the_mask_twice_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(with_mask_token(tokenizer)) == 281


def plain_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = {"<eos>": 0, "<mask>": 1, "a": 2, "<unk>": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), **special
    )


def test_mask_inside_the_vocabulary_changes_places_with_the_last_token() -> None:
    tokenizer = with_mask_token(plain_tokenizer(eos_token="<eos>", mask_token="<mask>"))
    assert tokenizer.get_vocab() == {"<eos>": 0, "<unk>": 1, "a": 2, "<mask>": 3}
    assert tokenizer.mask_token_id == 3


def test_tokenizer_without_separator_is_refused() -> None:
    with pytest.raises(ValueError, match="no end-of-text token"):
        with_mask_token(plain_tokenizer())


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere") as caught:
        load_tokenizer(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
