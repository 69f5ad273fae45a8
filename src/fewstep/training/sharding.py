"""Weights shared out over processes with FSDP2, so that each holds and updates only its part.

Each block is gathered whole for its forward and its backward pass and dropped again; embedding, output
head and what else is outside the blocks stay gathered from a pass until `reshard`. Parameters,
gradients, moments and averages are `DTensor`s, cut along their first dimension.
Source: Zhao et al., 2023, "PyTorch FSDP".
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fewstep.losses.nelbo import DenoiserNetwork


def shard(network: nn.Module, device_type: str) -> None:
    """Share the weights of `network` out over all processes, in place; they move to `device_type`.

    Each element of a `ModuleList` is a block. Weights are sent in float32 whatever the precision, since
    validation computes in it.
    """
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for module in reversed(list(network.modules())):  # from the inside out
        for block in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    if isinstance(network, DenoiserNetwork):
        keep_in_step(network)
    register_fsdp_forward_method(network, "hidden")


def keep_in_step(network: Any) -> None:
    """Let a pass of `network` that asks for no row compute one nonetheless, in place.

    Other processes, which do ask, wait for this one's share of the weights or of their gradients.
    """
    hidden = network.hidden

    def hidden_in_step(tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is None or rows.any():
            return hidden(tokens, rows)
        one = torch.zeros_like(rows)
        one[0, 0] = True
        return hidden(tokens, one)[:0].clone()

    network.hidden = hidden_in_step


def reshard(network: nn.Module) -> None:
    """Drop what passes left gathered, so that the parameters are the shares again."""
    if isinstance(network, FSDPModule):
        network.reshard()


def whole(weights: dict[str, Tensor], *, wanted: bool) -> dict[str, Tensor]:
    """Return tensors by name, those that are shared out gathered on the CPU; all processes take part.

    Only a process in which they are `wanted` keeps them.
    """
    gathered = {}
    for name, weight in weights.items():
        full = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if wanted:
            gathered[name] = full.cpu() if isinstance(weight, DTensor) else full
    return gathered


def whole_number(scalar: Tensor) -> Tensor:
    """Return a scalar whose parts are in several processes as one that is whole in each."""
    return scalar.full_tensor() if isinstance(scalar, DTensor) else scalar
