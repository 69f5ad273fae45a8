"""Small networks of the real `transformers` classes, with random weights, and tokenizers for them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

MASK, LAST = 3, 37
"""Where the tests' networks have their mask and their last token; ids 38 and 39 are padding."""
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BIDIRECTIONAL = {"is_causal": False}
KINDS = {
    "bert": (BertForMaskedLM, BertConfig, {}),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig,
        {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "roberta": (RobertaForMaskedLM, RobertaConfig, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, BIDIRECTIONAL),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {**BIDIRECTIONAL, "num_key_value_heads": 1, "shifted_logits": True, "tie_word_embeddings": True},
    ),
}


def network(kind: str, **settings: Any) -> PreTrainedModel:
    """Return a network whose every weight is random and large enough to matter."""
    model_class, config_class, defaults = KINDS[kind]
    model = model_class(config_class(**{**SHAPE, **defaults, **settings}))
    generator = torch.Generator().manual_seed(len(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.25, generator=generator)
    return model.eval()


def own_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, L, 40) of a full forward pass in which every position attends to every one."""
    batch, length = tokens.shape
    seen = torch.ones(batch, length, dtype=torch.long)
    if model.config.model_type in ("llama", "qwen2"):
        seen = torch.ones(batch, 1, length, length, dtype=torch.bool)  # what a causal mask cannot narrow
    logits = model(input_ids=tokens, attention_mask=seen).logits
    if model.config.model_type == "qwen2":
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    return logits


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 38 words, the mask `[MASK]` with the id 3 among them."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *(f"w{i}" for i in range(5, 38))]
    rules = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer()
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.decoder = decoders.WordPiece()
    names = {
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "cls_token": "[CLS]",
        "unk_token": "[UNK]",
        **special,
    }
    return PreTrainedTokenizerFast(tokenizer_object=rules, **names)


def checkpoint(directory: Path, kind: str, **settings: Any) -> PreTrainedModel:
    """Save a network and its tokenizer as its authors would, and return the network."""
    model = network(kind, **settings)
    model.save_pretrained(directory)
    word_tokenizer(mask_token="[MASK]").save_pretrained(directory)
    return model
