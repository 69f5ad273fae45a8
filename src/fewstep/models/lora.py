"""Low-rank adapters (LoRA): the student of a round as a small change to the frozen weights of its teacher.

Every linear layer W of the blocks becomes W + alpha / rank * B A, of which only A and B are trained. With
the adapter off, the network is the teacher, so there is no second copy of the weights. Rounds stack by
merging: a round's change is added to W, which are the weights that are saved, and the next round begins
with an adapter that changes nothing.
Source: Hu et al., 2022, "LoRA".
"""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.language_model import Denoiser

OWN_LAYERS = ("attn_qkv", "attn_out", "mlp.0", "mlp.2")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train a low-rank change of the teacher's weights in place of a second network."""

    rank: int = 0
    """Rank of the change of each linear layer of the blocks; 0 trains all weights."""
    alpha: float = 16.0
    """The change is multiplied by `alpha` / `rank`."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"lora.rank is {self.rank} and lora.alpha {self.alpha}; rank must be at least 0, "
                "and alpha above 0"
            )
        if self.rank and importlib.util.find_spec("peft") is None:
            raise ValueError("lora needs peft, which is not installed: pip install 'fewstep[lora]'")


def attach(network: Denoiser | HuggingFaceDenoiser, config: LoraConfig) -> None:
    """Freeze `network` and give the linear layers of its blocks adapters, in place; see `restart`."""
    from peft import LoraConfig as Settings
    from peft import inject_adapter_in_model

    if isinstance(network, HuggingFaceDenoiser):
        blocks: nn.Module = network.network.base_model
        names = [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    else:
        blocks = network.backbone.blocks
        names = [name for name, _ in blocks.named_modules() if name.endswith(OWN_LAYERS)]
    network.requires_grad_(False)
    settings = Settings(r=config.rank, lora_alpha=config.alpha, target_modules=names)  # pyright: ignore
    inject_adapter_in_model(settings, blocks)


def adapters(network: nn.Module) -> dict[str, Any]:
    """Return the layers of `network` that have an adapter, by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


@torch.no_grad()
def load_frozen(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights`, by the names that they have without adapters, into the frozen ones of `network`."""
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            parameter.copy_(weights[plain_name(name)])


@torch.no_grad()
def restart(network: nn.Module, generator: torch.Generator) -> None:
    """Make adapters change nothing: A is drawn uniform within 1 / sqrt(its inputs), and B is zero."""
    for layer in adapters(network).values():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bound = 1 / math.sqrt(down.shape[1])
        down.copy_(torch.rand(down.shape, generator=generator) * 2 * bound - bound)
        up.zero_()


def plain_name(name: str) -> str:
    """Return the name of a frozen parameter without adapters."""
    return name.replace(".base_layer.", ".")


@torch.no_grad()
def merged(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `network` with its adapters added, by the names that they have without."""
    weights = {plain_name(name): p.detach() for name, p in network.named_parameters() if not p.requires_grad}
    for name, layer in adapters(network).items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Let `network` be what it is without its adapters while the block runs."""
    layers = adapters(network).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapters:
    """The denoiser that `network` is with its adapters off; it shares its weights."""

    def __init__(self, network: Denoiser | HuggingFaceDenoiser) -> None:
        self.network = network
        self.mask_token_id, self.vocab_size = network.mask_token_id, network.vocab_size
        self.output_head, self.head = network.output_head, network.head  # these have no adapter

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the network's hidden rows, computed without adapters."""
        with adapters_off(self.network):
            return self.network.hidden(tokens, rows)
