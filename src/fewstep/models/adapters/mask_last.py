"""The mask as the last id, V, of a tokenizer that has it elsewhere.

The mask and the last token change places, and every other id stays as it is. BERT's `[MASK]`, 103 of
30522, becomes 30521, and what was 30521 becomes 103. `HuggingFaceDenoiser` does the same to the tables of its
network, so both fit each other as before, and are saved so: they then load without any change.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

DREAM = "Dream"
"""A model type whose tokenizer has a class of its own, which differs from Qwen2's in name alone."""
RULES_ALONE = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of tokenizers that are their rules alone; `AutoTokenizer` makes others of them for some models."""
KEPT_ATTRIBUTES = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


def read_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer as it was saved; its mask is what the config.json beside it says, if it names none.

    Raises:
        OSError, ValueError: if there is none that `transformers` can read without code of its own.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except OSError:  # a tokenizer alone
        config = {}
    reader = Qwen2Tokenizer if config.get("model_type") == DREAM else AutoTokenizer
    if get_tokenizer_config(name_or_path).get("tokenizer_class") in RULES_ALONE:
        reader = PreTrainedTokenizerFast
    tokenizer: Any = reader.from_pretrained(name_or_path)
    mask = config.get("mask_token_id")
    if tokenizer.mask_token_id is None and mask is not None and mask < len(tokenizer):
        tokenizer.add_special_tokens({"mask_token": tokenizer.convert_ids_to_tokens(mask)})
    return tokenizer


def mask_place(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the id of the mask, and V, the number of the other tokens.

    A tokenizer without a mask has it added, behind all others.
    """
    mask: Any = tokenizer.mask_token_id
    return (len(tokenizer), len(tokenizer)) if mask is None else (mask, len(tokenizer) - 1)


def with_last_mask(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return `tokenizer` with its mask in the place of its last token, and that in the mask's.

    Raises:
        ValueError: if it has no rules of the `tokenizers` library to change.
    """
    rules = getattr(tokenizer, "backend_tokenizer", None)
    if rules is None:
        raise ValueError(f"a {type(tokenizer).__name__} is no fast tokenizer; convert it to one")
    mask, last = mask_place(tokenizer)
    names: Any = tokenizer.convert_ids_to_tokens([mask, last])
    changed = swapped_rules(json.loads(rules.to_str()), *names)
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(changed)),
        **tokenizer.special_tokens_map,
        **{name: getattr(tokenizer, name) for name in KEPT_ATTRIBUTES if hasattr(tokenizer, name)},
    )
    swapped.chat_template = tokenizer.chat_template
    return swapped


def swapped_rules(rules: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    """Return the rules of a tokenizer, as its JSON file holds them, with the ids of two tokens exchanged."""
    partner = {one: other, other: one}
    vocabulary = rules["model"]["vocab"]
    if isinstance(vocabulary, dict):
        ids = dict(vocabulary)
        swapped: Any = {partner.get(token, token): place for token, place in vocabulary.items()}
    else:  # a unigram model: tokens with their scores, in the order of their ids
        ids = {token: place for place, (token, _) in enumerate(vocabulary)}
        scores = dict(vocabulary)
        names = [partner.get(token, token) for token, _ in vocabulary]
        swapped = [[name, scores.get(name, 0.0)] for name in names]
    ids |= {token["content"]: token["id"] for token in rules["added_tokens"]}
    added = [
        {**token, "id": ids[partner.get(token["content"], token["content"])]}
        for token in rules["added_tokens"]
    ]
    added.sort(key=lambda token: token["id"])  # those behind the vocabulary get their ids in this order
    return {**rules, "model": {**rules["model"], "vocab": swapped}, "added_tokens": added}
