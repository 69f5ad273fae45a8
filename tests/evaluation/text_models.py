"""Small models that read text, for tests of what asks a model about text."""

import torch
from transformers import PreTrainedTokenizerBase

from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import TextModel
from tests.conftest import randomize

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "condition_size": 8,
}


def small_denoiser(tokenizer: PreTrainedTokenizerBase) -> TextModel:
    """A denoiser with a context of 32 tokens, whose every weight is random."""
    network = Denoiser(DenoiserConfig(**SHAPE))
    randomize(network, seed=3)
    return TextModel(network, tokenizer)


def small_autoregressive(tokenizer: PreTrainedTokenizerBase) -> TextModel:
    """An autoregressive model of the same shape."""
    network = AutoregressiveLM(AutoregressiveConfig(**SHAPE))
    randomize(network, seed=4)
    return TextModel(network, tokenizer)


@torch.no_grad()
def next_token_log_probabilities(model: TextModel, ids: list[int]) -> torch.Tensor:
    """log p of each token by an autoregressive model, (L,) float64."""
    logits = model.network(torch.tensor([[280, *ids[:-1]]])).logits[0].double()
    return logits.log_softmax(-1)[range(len(ids)), ids]


@torch.no_grad()
def masked_log_probabilities(model: TextModel, context: list[int], rest: torch.Tensor) -> torch.Tensor:
    """log p of a denoiser at the positions of `rest`, which stands behind `context`: (len(rest), V)."""
    ids = torch.cat([torch.tensor(context, dtype=torch.long), rest])
    return model.network(ids[None]).logits[0, len(context) :].double().log_softmax(-1)
