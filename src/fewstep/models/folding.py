"""Folding: the constant adaLN of a transformer becomes part of its linear layers, for inference.

LayerNorm's weight and scale multiply the columns of the linear layer after it, the shift becomes its
bias, and the gate multiplies the rows of the layer that writes to the residual stream.
"""

import torch
from torch import Tensor, nn

from fewstep.models.transformer import Block, ModulatedLayerNorm, Modulation, Transformer


@torch.no_grad()
def fold(transformer: Transformer) -> None:
    """Fold adaLN into the neighbouring linear layers, in place and exactly (to rounding).

    A second call does nothing.
    """
    condition = transformer.condition()
    if condition is None:
        return
    for block in transformer.blocks:
        assert isinstance(block, Block)
        fold_block(block, condition)
    output_layer = transformer.output_layer
    fold_norm(output_layer.norm_final, output_layer.modulation(condition), output_layer.linear)
    output_layer.adaLN_modulation = None
    transformer.sigma_map = None


def fold_block(block: Block, condition: Tensor) -> None:
    for_attention, for_mlp = block.modulations(condition)
    widen, _, narrow = block.mlp
    assert isinstance(widen, nn.Linear)
    assert isinstance(narrow, nn.Linear)
    fold_norm(block.norm1, for_attention, block.attn_qkv)
    fold_norm(block.norm2, for_mlp, widen)
    fold_gate(for_attention, block.attn_out)
    fold_gate(for_mlp, narrow)
    block.adaLN_modulation = None


def fold_norm(norm: ModulatedLayerNorm, modulation: Modulation | None, linear: nn.Linear) -> None:
    assert modulation is not None
    shift_through = linear.weight @ modulation.shift
    bias = shift_through if linear.bias is None else linear.bias + shift_through
    linear.bias = nn.Parameter(bias)
    linear.weight.mul_(norm.affine_weight(modulation))
    norm.weight = None


def fold_gate(modulation: Modulation | None, linear: nn.Linear) -> None:
    assert modulation is not None
    assert modulation.gate is not None
    linear.weight.mul_(modulation.gate[:, None])
    if linear.bias is not None:
        linear.bias.mul_(modulation.gate)
