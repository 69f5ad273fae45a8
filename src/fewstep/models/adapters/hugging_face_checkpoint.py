"""Checkpoints of `transformers` models that are denoisers, recognised by their config.json and loaded.

    bert, modernbert, ...      whatever `AutoModelForMaskedLM` knows
    llama, qwen2, ...          whatever `AutoModelForCausalLM` knows, if the file says "is_causal": false;
                               with "shifted_logits": true, row i predicts token i + 1
    llada                      LLaDA (Nie et al., 2025): Llama's blocks under other names
    Dream                      Dream (Ye et al., 2025): Qwen2's blocks, shifted logits

No code of a checkpoint is run. A network is saved again as the `transformers` model that it is.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.adapters.mask_last import DREAM, mask_place, read_tokenizer

LLADA = "llada"
LLADA_NAMES = {
    r"model\.transformer\.wte": "model.embed_tokens",
    r"model\.transformer\.ln_f": "model.norm",
    r"model\.transformer\.ff_out": "lm_head",
    r"model\.transformer\.blocks\.(\d+)\.([qkv])_proj": r"model.layers.\1.self_attn.\2_proj",
    r"model\.transformer\.blocks\.(\d+)\.attn_out": r"model.layers.\1.self_attn.o_proj",
    r"model\.transformer\.blocks\.(\d+)\.attn_norm": r"model.layers.\1.input_layernorm",
    r"model\.transformer\.blocks\.(\d+)\.ff_norm": r"model.layers.\1.post_attention_layernorm",
    r"model\.transformer\.blocks\.(\d+)\.ff_proj": r"model.layers.\1.mlp.gate_proj",
    r"model\.transformer\.blocks\.(\d+)\.up_proj": r"model.layers.\1.mlp.up_proj",
    r"model\.transformer\.blocks\.(\d+)\.ff_out": r"model.layers.\1.mlp.down_proj",
}
USELESS = re.compile(r"pooler|seq_relationship|position_ids|inv_freq")
"""Tensors of other tasks, or that follow from the configuration; published checkpoints have them."""


def recognises(config: dict[str, Any]) -> bool:
    """Return whether the settings of a config.json are of a language model that `transformers` knows."""
    kinds = (LLADA, DREAM, *MODEL_FOR_MASKED_LM_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return config.get("model_type") in kinds


def load_hugging_face(path: str, settings: dict[str, Any]) -> HuggingFaceDenoiser:
    """Return the denoiser of a directory whose config.json has `settings`, in float32.

    Its tokenizer is read as well: it says which id is the mask, and how many are real tokens.

    Raises:
        ValueError: if the model is causal, or its weights do not fit its config.json.
        OSError: if a file is not there.
    """
    config = configuration(path, settings)
    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not is_masked and getattr(config, "is_causal", True):
        raise ValueError(
            f"it is a causal {config.model_type}, and a denoiser sees both sides; if it was trained without "
            'a causal mask, write "is_causal": false into its config.json'
        )
    tokenizer = read_tokenizer(path)
    mask_token_id, vocab_size = mask_place(tokenizer)
    is_llada = settings["model_type"] == LLADA
    if is_llada:
        model_class: Any = LlamaForCausalLM
    else:
        model_class = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
    network, report = model_class.from_pretrained(
        None if is_llada else path,
        state_dict=llada_weights(path) if is_llada else None,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # they are named below
        output_loading_info=True,
    )
    wrong = sorted(
        [
            *report["missing_keys"],
            *(key for key in report["unexpected_keys"] if not USELESS.search(key)),
            *(name for name, *_ in report["mismatched_keys"]),
        ]
    )
    if wrong:
        raise ValueError(f"its weights do not fit its config.json: {', '.join(wrong[:8])}")
    for parameter in network.parameters():  # as loaded, their addresses differ, and so would rounding
        parameter.data = parameter.data.clone()
    return HuggingFaceDenoiser(network, mask_token_id=mask_token_id, vocab_size=vocab_size)


def llada_weights(path: str) -> dict[str, Tensor]:
    """Return the tensors of a LLaDA checkpoint under the names of Llama's."""
    weights = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module, _, kind = name.rpartition(".")
            for theirs, ours in LLADA_NAMES.items():
                if re.fullmatch(theirs, module):
                    module = re.sub(theirs, ours, module)
                    break
            weights[f"{module}.{kind}"] = tensor
    return weights


def configuration(path: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration that `transformers` has for a config.json with `settings`."""
    if settings["model_type"] == DREAM:
        kept = {key: value for key, value in settings.items() if key not in ("auto_map", "architectures")}
        return AutoConfig.for_model(
            **{**kept, "model_type": "qwen2", "is_causal": False, "shifted_logits": True}
        )
    if settings["model_type"] == LLADA:
        return AutoConfig.for_model(
            "llama",
            vocab_size=settings.get("embedding_size") or settings["vocab_size"],
            hidden_size=settings["d_model"],
            intermediate_size=settings["mlp_hidden_size"],
            num_hidden_layers=settings["n_layers"],
            num_attention_heads=settings["n_heads"],
            num_key_value_heads=settings.get("n_kv_heads") or settings["n_heads"],
            max_position_embeddings=settings["max_sequence_length"],
            rms_norm_eps=settings["rms_norm_eps"],
            rope_theta=settings["rope_theta"],
            attention_bias=settings.get("include_qkv_bias", False),
            tie_word_embeddings=settings.get("weight_tying", False),
            mask_token_id=settings["mask_token_id"],
            is_causal=False,
        )
    return AutoConfig.from_pretrained(path)
