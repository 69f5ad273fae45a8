"""Checkpoints of a tiny denoiser, a tiny autoregressive model and a judge, all with random weights."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "condition_size": 8,
}


def save_tiny_models(directory: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the directories "denoiser", "autoregressive" and "judge"."""
    for name, model in (
        ("denoiser", Denoiser(DenoiserConfig(**SHAPE))),
        ("autoregressive", AutoregressiveLM(AutoregressiveConfig(**SHAPE))),
    ):
        generator = torch.Generator().manual_seed(len(name))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        save_checkpoint(directory / name, model, tokenizer, {})
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=281,
    )  # fmt: skip
    judge = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    judge.save_pretrained(directory / "judge")
    tokenizer.save_pretrained(directory / "judge")
    return {name: str(directory / name) for name in ("denoiser", "autoregressive", "judge")}
