"""A mask inside the vocabulary changes places with the last token, and nothing else changes."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fewstep.data.tokenizer import load_tokenizer, vocab_size, with_mask_token
from fewstep.models.adapters.mask_last import mask_place, with_last_mask

SPECIAL = ["<pad>", "<eos>", "<mask>", "<unk>"]
TEXTS = ["we hold that a free people governs itself", "peace and honest friendship with all nations"] * 3


def byte_pairs(*, mask: str, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    rules.train_from_iterator(TEXTS, trainer)
    rules.add_special_tokens([*added])
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<eos>", mask_token=mask)


def unigrams() -> PreTrainedTokenizerFast:
    rules = Tokenizer(models.Unigram())
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    rules.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<eos>", mask_token="<mask>")


TOKENIZERS = {
    "byte pairs": byte_pairs(mask="<mask>"),
    "mask in, last token behind the vocabulary": byte_pairs(mask="<mask>", added=("<one>", "<two>")),
    "mask and last token behind the vocabulary": byte_pairs(
        mask="<one>", added=("<one>", "<two>", "<three>")
    ),
    "unigrams": unigrams(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_mask_and_last_token_change_places(name: str, tmp_path: Path) -> None:
    before = TOKENIZERS[name]
    mask, last = mask_place(before)
    assert mask < last == len(before) - 1
    after = with_last_mask(before)
    after.save_pretrained(tmp_path)
    partner = {mask: last, last: mask}
    text = "we hold that peace<two> is honest <eos> friendship"
    for one in (after, load_tokenizer(tmp_path)):
        assert one.mask_token == before.mask_token and one.mask_token_id == last == vocab_size(one)
        assert one.get_vocab() == {token: partner.get(i, i) for token, i in before.get_vocab().items()}
        for sample in (text, before.decode([last, 9, last]), before.mask_token):
            ids = before(sample, add_special_tokens=False)["input_ids"]
            assert one(sample, add_special_tokens=False)["input_ids"] == [partner.get(i, i) for i in ids]
            assert one.decode([partner.get(i, i) for i in ids]) == before.decode(ids)
        assert one.eos_token_id == before.eos_token_id


def test_what_else_a_tokenizer_says_is_kept() -> None:
    before = byte_pairs(mask="<mask>")
    before.chat_template, before.model_max_length = "{{ messages }}", 77
    after = with_last_mask(before)
    assert (after.chat_template, after.model_max_length) == ("{{ messages }}", 77)


def test_separator_is_what_bert_ends_a_text_with() -> None:
    before = byte_pairs(mask="<mask>")
    before.eos_token, before.sep_token = None, "<unk>"
    assert with_mask_token(before).eos_token_id == SPECIAL.index("<unk>")
