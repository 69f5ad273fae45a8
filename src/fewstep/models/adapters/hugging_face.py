"""A `transformers` language model with bidirectional attention as a denoiser.

    network = AutoModelForMaskedLM.from_pretrained("answerdotai/ModernBERT-base")
    denoiser = HuggingFaceDenoiser(network, mask_token_id=50284, vocab_size=50367)

Everything up to the input of the last linear layer (the transform of a masked language model's head
included) makes hidden rows; that layer is the output head. Its rows of the mask and of padding behind
the vocabulary are left out, so that the probabilities are those of the model given that a token is
real. The mask becomes the last id, V: see `mask_last`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_LENGTH = 8


class OutputHead(NamedTuple):
    """A linear map from hidden rows to logits: `weight` (V, D) and `bias` (V,)."""

    weight: Tensor
    bias: Tensor | None


class HuggingFaceDenoiser(nn.Module):
    """Predicts the clean token at each masked position with a `transformers` model.

    Tied embeddings stay tied, and dropout is switched off, since a run draws from its own generators
    alone. `network` belongs to the denoiser from here on: its last layer hands on its input, so that
    it returns hidden rows for logits. It has no pass for chosen rows.

    Args:
        network: a model for masked language modeling, or one for causal language modeling whose
            configuration says `is_causal=False`.
        mask_token_id: the id that `network` has for the mask.
        vocab_size: V, the number of tokens that are real; ids above V are never used.
        shifted: whether the logits for a position are those of the position before it, as in models
            that were autoregressive. By default what the configuration says in `shifted_logits`.

    Raises:
        ValueError: if the network attends to the left alone, has no linear output layer, or no mask.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        mask_token_id: int,
        vocab_size: int,
        shifted: bool | None = None,
    ) -> None:
        super().__init__()
        name = type(network).__name__
        self.vocab_size = vocab_size
        """V, the number of real tokens."""
        self.mask_token_id = vocab_size
        """The input id of a masked position: V."""
        self.network = network
        decoder = linear_output(network)
        embedding: Any = network.get_input_embeddings()
        if max(mask_token_id, vocab_size) >= len(embedding.weight):
            raise ValueError(
                f"the {name} has embeddings of {len(embedding.weight)} ids, and its mask or last token is id "
                f"{max(mask_token_id, vocab_size)}; give it a row for the mask and train that"
            )
        embedding.padding_idx = None  # the token of that id is as real as any other
        swap_rows([embedding.weight, *decoder.parameters()], mask_token_id, vocab_size)
        network.config.mask_token_id = vocab_size
        if shifted is not None:
            network.config.shifted_logits = shifted
        without_dropout(network)
        hold_back(network, decoder)

    @property
    def shifted(self) -> bool:
        """Whether the network's row i predicts token i + 1, and the first its own."""
        return getattr(self.network.config, "shifted_logits", False)

    @property
    def max_length(self) -> int:
        """The context length: what it was last trained on here, or else the most that it can take."""
        return getattr(self.network.config, "context_length", longest(self.network))

    @max_length.setter
    def max_length(self, length: int) -> None:
        if length > longest(self.network):
            raise ValueError(
                f"a context of {length} tokens is longer than the {longest(self.network)} positions of this "
                f"{type(self.network).__name__}; choose a smaller context_length"
            )
        self.network.config.context_length = length

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.network.dtype

    @property
    def output_head(self) -> OutputHead:
        """The linear map from hidden rows to logits over the V real tokens: views of the layer's rows."""
        decoder = linear_output(self.network)
        bias = None if decoder.bias is None else decoder.bias[: self.vocab_size]
        return OutputHead(decoder.weight[: self.vocab_size], bias)

    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return the float32 logits (..., V) of hidden rows (..., D)."""
        return F.linear(hidden_rows, *self.output_head).float()

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the hidden rows (B, L, D) of tokens (B, L), or those (N, D) that the mask `rows` chooses.

        Sequences in which no row is chosen cost nothing.
        """
        if rows is not None and not rows.any():
            return self.output_head.weight.new_zeros(0, self.output_head.weight.shape[1])
        asking = slice(None) if rows is None else rows.any(1)
        hidden_BLD = self.network(input_ids=tokens[asking]).logits
        if self.shifted:
            hidden_BLD = torch.cat([hidden_BLD[:, :1], hidden_BLD[:, :-1]], dim=1)
        return hidden_BLD if rows is None else hidden_BLD[rows[asking]]

    def folded(self) -> "HuggingFaceDenoiser":
        """Return self, ready for inference."""
        return self.eval()

    def recompute_activations(self, wanted: bool) -> None:
        """Let the backward pass recompute each block, or not."""
        if wanted:
            # The name of transformers 5.0, and the one that replaced it.
            names = ("gradient_checkpointing_enable", "activation_checkpointing_enable")
            enable: Any = getattr(self.network, names[hasattr(self.network, names[1])])
            enable({"use_reentrant": False})

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the network, or `state_dict` in its place, as `transformers` does, the mask as id V."""
        if state_dict is not None:
            state_dict = {name.removeprefix("network."): tensor for name, tensor in state_dict.items()}
        self.network.save_pretrained(directory, state_dict=state_dict)


@torch.no_grad()
def swap_rows(tables: list[Tensor], one: int, other: int) -> None:
    """Exchange two rows of each table, in place; a table that is given twice (tied) only once."""
    for table in {id(table): table for table in tables}.values():
        table[[one, other]] = table[[other, one]]


def linear_output(network: PreTrainedModel) -> nn.Linear:
    """Return the last layer of a language model.

    Raises:
        ValueError: if it has none, none that is linear, or an encoder and a decoder.
    """
    decoder = network.get_output_embeddings()
    if not isinstance(decoder, nn.Linear) or network.config.is_encoder_decoder:
        raise ValueError(
            f"a {type(network).__name__} is no single transformer with a linear output layer; "
            "pass a model for masked or causal language modeling"
        )
    return decoder


def longest(network: PreTrainedModel) -> int:
    """Return how many positions a network can take; RoBERTa's begin behind its padding id."""
    embeddings = {module for module in network.modules() if isinstance(module, nn.Embedding)}
    embeddings -= {network.get_input_embeddings()}
    skipped = [module.padding_idx + 1 for module in embeddings if module.padding_idx is not None]
    return network.config.max_position_embeddings - max(skipped, default=0)


def without_dropout(network: nn.Module) -> None:
    """Set the probability of every dropout to 0, in place."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@torch.no_grad()
def hold_back(network: PreTrainedModel, decoder: nn.Linear) -> None:
    """Make `decoder`, the last layer of `network`, hand on its input, once that is known to be enough.

    Raises:
        ValueError: if an earlier position does not see a later one, or the logits are not what the layer
            makes of its input.
    """
    name, was_training = type(network).__name__, network.training
    network.eval()
    tokens = torch.arange(PROBE_LENGTH, device=network.device)[None] % (network.config.vocab_size - 1)
    other = tokens.clone()
    other[0, -1] += 1
    logits, other_logits = (network(input_ids=ids).logits.float() for ids in (tokens, other))
    scale = logits.std()
    if (logits - other_logits)[:, :-1].abs().max() <= 1e-6 * scale:
        raise ValueError(
            f"this {name} is causal: what it predicts does not depend on later tokens, and a denoiser sees "
            "both sides; if it was trained without a causal mask, set is_causal to false in its configuration"
        )
    decoder.forward = identity
    made = F.linear(network(input_ids=tokens).logits, decoder.weight, decoder.bias).float()
    if (made - logits).abs().max() > 1e-2 * scale:
        raise ValueError(
            f"the logits of a {name} are not what its last linear layer returns; it cannot be split"
        )
    network.train(was_training)


def identity(input: Tensor) -> Tensor:
    """Return `input`."""
    return input
