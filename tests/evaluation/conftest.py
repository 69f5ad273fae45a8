"""A judge for tests: small, with random weights at which every token of context matters."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.evaluation.judge import Judge


@pytest.fixture
def judge(tokenizer: PreTrainedTokenizerBase) -> Judge:
    """A causal network of 281 tokens that reads 128 of them, whose prefix is token 7."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=281,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    return Judge(LlamaForCausalLM(config).eval(), tokenizer, "random", prefix_token_id=7)
