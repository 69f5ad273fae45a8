"""Output head and loss in one: no tensor of size N x V ever exists.

The rows are taken chunk by chunk. Each chunk's logits, loss and gradients are computed and dropped
before the next, in float32 whatever the precision of the network.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.losses.divergences import RowLoss, cross_entropy

CHUNK_ELEMENTS = 2**22
"""Logits held at once: 16 MiB in float32, which a processor's cache and memory bus take well."""


class LinearHead(Protocol):
    """A linear map from hidden rows (N, D) to logits (N, V), such as an `nn.Linear`."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...


def head_cross_entropy(
    rows_ND: Tensor, head: LinearHead, tokens_N: Tensor, row_weights_N: Tensor | None = None
) -> Tensor:
    """Return the sum over rows of weight * -log softmax(head(row))[token], a differentiable scalar."""
    return _FusedHead.apply(
        rows_ND, head.weight, head.bias, cross_entropy, tokens_N, None, row_weights_N, torch.is_grad_enabled()
    )


def head_divergence(
    rows_ND: Tensor, head: LinearHead, teacher_rows_ND: Tensor, teacher_head: LinearHead, divergence: RowLoss
) -> Tensor:
    """Return the sum over rows of D(student, teacher), a differentiable scalar.

    The teacher's rows and head receive no gradient. Divide by N for the mean.
    """
    return _FusedHead.apply(
        rows_ND,
        head.weight,
        head.bias,
        divergence,
        teacher_rows_ND,
        teacher_head,
        None,
        torch.is_grad_enabled(),
    )


def log_probabilities(rows_ND: Tensor, head: LinearHead) -> Tensor:
    """Return log softmax(head(rows)), (N, V) float32."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(rows_ND.device.type, enabled=False):
        return F.linear(rows_ND.float(), head.weight.float(), bias).log_softmax(-1)


class _FusedHead(torch.autograd.Function):
    """Computes the gradients beside the loss, so that backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_loss: RowLoss,
        targets: Tensor,
        teacher_head: LinearHead | None,
        row_weights_N: Tensor | None,
        grad_enabled: bool,
    ) -> Tensor:
        rows, weight = rows_ND.float(), weight_VD.float()
        bias = None if bias_V is None else bias_V.float()
        total = rows.new_zeros((), dtype=torch.float64)
        gradients = None
        if grad_enabled and any(ctx.needs_input_grad[:3]):
            gradients = (
                torch.empty_like(rows),
                torch.zeros_like(weight) if ctx.needs_input_grad[1] else None,
                weight.new_zeros(weight.shape[0]) if ctx.needs_input_grad[2] else None,
            )
        chunk = max(1, CHUNK_ELEMENTS // weight.shape[0])
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, rows.shape[0], chunk):
                part = slice(start, start + chunk)
                log_p = F.linear(rows[part], weight, bias).log_softmax(-1)
                target = targets[part]
                if teacher_head is not None:
                    target = log_probabilities(target, teacher_head)
                losses, logits_grad = row_loss(log_p, target)
                if row_weights_N is not None:
                    weights = row_weights_N[part].to(losses)
                    losses, logits_grad = losses * weights, logits_grad * weights[:, None]
                total += losses.sum(dtype=torch.float64)
                if gradients is not None:
                    rows_grad, weight_grad, bias_grad = gradients
                    torch.mm(logits_grad, weight, out=rows_grad[part])
                    if weight_grad is not None:
                        weight_grad.addmm_(logits_grad.T, rows[part])
                    if bias_grad is not None:
                        bias_grad += logits_grad.sum(0)
        if gradients is not None:
            ctx.gradients = gradients
            ctx.dtypes = rows_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return total.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "backward runs once: the gradients are scaled where they are"
        gradients = [
            None if gradient is None else gradient.mul_(upstream[0]).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return *gradients, None, None, None, None, None
