"""The training loss of the autoregressive baseline: -log p(token | tokens before it)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.masking import plain_ids
from fewstep.losses.fused_head import head_cross_entropy
from fewstep.models.language_model import AutoregressiveLM


def shifted_right(tokens_BL: Tensor, start_token_id: int) -> Tensor:
    """Return the inputs that predict `tokens_BL`: the start id, then all tokens but the last."""
    start = torch.full_like(tokens_BL[:, :1], start_token_id)
    return torch.cat([start, tokens_BL[:, :-1]], dim=1)


def next_token_sum(model: AutoregressiveLM, tokens_BL: Tensor) -> Tensor:
    """Return the negative log-likelihood of the tokens that are not given, in nats; differentiable."""
    rows_BLD = model.hidden(shifted_right(plain_ids(tokens_BL), model.start_token_id))
    learned_BL = tokens_BL >= 0
    if learned_BL.all():  # spares a copy of all rows
        return head_cross_entropy(rows_BLD.flatten(0, 1), model.output_head, tokens_BL.flatten())
    return head_cross_entropy(rows_BLD[learned_BL], model.output_head, tokens_BL[learned_BL])


@dataclass(frozen=True)
class NextTokenObjective:
    """Trains an autoregressive model: loss in nats a token."""

    def prepare(self, tokens_BL: Tensor, training_step: int) -> dict[str, Tensor]:
        """Return the global batch; nothing is drawn."""
        return {"clean": tokens_BL}

    def normalizer(self, batch: dict[str, Tensor]) -> int:
        """Return what the loss sum over `batch` is divided by: its tokens that are not given."""
        return int((batch["clean"] >= 0).sum())

    def loss_sum(self, model: AutoregressiveLM, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss summed over a part of a prepared batch."""
        return next_token_sum(model, batch["clean"])
