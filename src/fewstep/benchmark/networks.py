"""The untrained networks that benchmarks run, and what memory they take."""

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fewstep.benchmark.machine import available_bytes, precision
from fewstep.benchmark.roofline import Network
from fewstep.models.config import SHAPES, AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser

WORKSPACE_BYTES = 2**29
"""Room for the allocator and for logits drawn chunk by chunk."""


def check_shape(shape: str, length: int) -> None:
    """Raise ValueError if there is no such shape, or its context is shorter than `length`."""
    if shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}; choose one of {', '.join(SHAPES)}")
    context = DenoiserConfig(**SHAPES[shape]).max_position_embeddings
    if not 1 <= length <= context:
        raise ValueError(f"length is {length}; the models take 1 to {context} tokens")


def check_positive(**settings: int | tuple[int, ...]) -> None:
    """Raise ValueError if a setting, or one of a list, is below 1, or a list is empty."""
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        if not values:
            raise ValueError(f"{name} is empty; name at least one")
        for each in values:
            if each < 1:
                raise ValueError(f"{name} is {each}; it must be at least 1")


def check_cache_refresh(cache_refresh: int) -> None:
    """Raise ValueError if the number of steps between full passes is negative."""
    if cache_refresh < 0:
        raise ValueError(
            f"cache_refresh is {cache_refresh}; it is 1 for no cache, more for a full pass every so many "
            "steps, or 0 for a single full pass"
        )


def new_denoiser(shape: str, device: torch.device, *, dtype: torch.dtype | None = None) -> Denoiser:
    """Return an untrained denoiser, ready to be trained; in `precision` by default."""
    return on_device(Denoiser(DenoiserConfig(**SHAPES[shape])), device, dtype or precision(device))


def new_pair(shape: str, device: torch.device) -> tuple[Denoiser, AutoregressiveLM]:
    """Return a denoiser and an autoregressive model, both folded, that share one set of weights."""
    denoiser = new_denoiser(shape, device)
    with torch.device("meta"):
        autoregressive = AutoregressiveLM(AutoregressiveConfig(**SHAPES[shape]))
    autoregressive.load_state_dict(denoiser.state_dict(), assign=True)
    # Folding an untrained network multiplies by 1 and adds 0, so doing it twice to shared weights is right.
    denoiser.folded()
    autoregressive.folded()
    return denoiser, autoregressive


def new_gpt2(shape: str, length: int, device: torch.device) -> GPT2LMHeadModel:
    """Return Hugging Face's GPT-2 of the same width, blocks and heads, untrained."""
    config = DenoiserConfig(**SHAPES[shape])
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=length + 1,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return on_device(gpt2, device, precision(device)).eval()


def on_device(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return module.to(device=device, dtype=dtype)


def sizes_of(shape: str, device: torch.device) -> Network:
    """Return the sizes of a shape for roofline estimates."""
    config = DenoiserConfig(**SHAPES[shape])
    return Network(
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        mlp_ratio=config.mlp_ratio,
        bytes_per_number=precision(device).itemsize,
    )


@cache
def num_parameters(shape: str) -> int:
    """Return the parameters of a shape before folding; what its name says."""
    with torch.device("meta"):
        model: nn.Module = Denoiser(DenoiserConfig(**SHAPES[shape]))
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(shape: str, device: torch.device) -> int:
    """Return the bytes of one set of weights."""
    return num_parameters(shape) * precision(device).itemsize


def generation_bytes(shape: str, batch: int, length: int, device: torch.device) -> int:
    """Return about what a generation takes above the weights: two caches, activations, workspace."""
    sizes = sizes_of(shape, device)
    positions = batch * length * sizes.width * sizes.bytes_per_number
    caches = 2 * 2 * sizes.num_layers * positions
    activations = (2 * sizes.mlp_ratio + 8) * positions
    return caches + activations + WORKSPACE_BYTES


def check_fits(what: str, needed: int, device: torch.device, way_out: str) -> None:
    """Raise ValueError if `needed` bytes are not available on `device`."""
    available = available_bytes(device)
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            f"{way_out}"
        )
