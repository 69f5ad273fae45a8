"""The network of the published MDLM and SDTT checkpoints, slow and obvious, and random ones of it.

Written from the papers' description: a DiT with rotary attention, LayerNorm without bias, adaLN from a
time embedding at time zero, and the substitution parameterization.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor


class Shape(NamedTuple):
    """Sizes of a published network; `tokens` are real ones, to which the mask is added."""

    width: int
    heads: int
    blocks: int
    condition: int
    tokens: int
    length: int


SHAPES = (Shape(24, 3, 2, 5, 11, 7), Shape(16, 1, 3, 6, 20, 9), Shape(32, 4, 1, 3, 280, 16))
PREFIXES = ("backbone.", "backbone.backbone.")


def random_tensors(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the tensors of a network by their names without a prefix, in the order of its modules."""
    generator = torch.Generator().manual_seed(seed)
    width, rows = shape.width, shape.tokens + 1
    sizes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (rows, width)}
    sizes |= linear("sigma_map.mlp.0", shape.condition, 256) | linear(
        "sigma_map.mlp.2", shape.condition, shape.condition
    )
    sizes["rotary_emb.inv_freq"] = (width // shape.heads // 2,)
    for block in range(shape.blocks):
        name = f"blocks.{block}"
        sizes[f"{name}.norm1.weight"] = (width,)
        sizes[f"{name}.attn_qkv.weight"] = (3 * width, width)
        sizes[f"{name}.attn_out.weight"] = (width, width)
        sizes[f"{name}.norm2.weight"] = (width,)
        sizes |= linear(f"{name}.mlp.0", 4 * width, width) | linear(f"{name}.mlp.2", width, 4 * width)
        sizes |= linear(f"{name}.adaLN_modulation", 6 * width, shape.condition)
    sizes["output_layer.norm_final.weight"] = (width,)
    sizes |= linear("output_layer.linear", rows, width)
    sizes |= linear("output_layer.adaLN_modulation", 2 * width, shape.condition)
    tensors = {name: torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}
    head_width = width // shape.heads
    tensors["rotary_emb.inv_freq"] = torch.tensor(
        [10_000 ** (-2 * i / head_width) for i in range(head_width // 2)]
    )
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def mdlm_config(shape: Shape) -> dict[str, Any]:
    """Return the config.json of MDLM's repository, as far as it matters."""
    return {
        "model_type": "mdlm",
        "architectures": ["MDLM"],
        "vocab_size": shape.tokens + 1,
        "hidden_dim": shape.width,
        "cond_dim": shape.condition,
        "n_blocks": shape.blocks,
        "n_heads": shape.heads,
        "model_length": shape.length,
        "time_conditioning": False,
    }


def sdtt_config(shape: Shape) -> dict[str, Any]:
    """Return the config.json of SDTT's repository, as far as it matters: a training configuration."""
    model = {
        "hidden_size": shape.width,
        "cond_dim": shape.condition,
        "n_blocks": shape.blocks,
        "n_heads": shape.heads,
        "length": shape.length,
    }
    return {"model": model, "tokenizer": {"name": "gpt2"}, "parameterization": {"name": "multi-round-sdtt"}}


def write_checkpoint(
    directory: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None, prefix: str = "backbone."
) -> Path:
    """Write a published checkpoint and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file(named, directory / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def log_probabilities(tensors: dict[str, Tensor], tokens: Tensor, heads: int) -> Tensor:
    """Return log p(token) over the real tokens at each position of one sequence, (L, V), in float64."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def affine(name: str, rows: Tensor) -> Tensor:
        bias = tensors.get(f"{name}.bias", 0.0)
        return rows @ tensors[f"{name}.weight"].T + bias

    def norm(name: str, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * tensors[f"{name}.weight"]

    def silu(rows: Tensor) -> Tensor:
        return rows / (1 + torch.exp(-rows))

    def gelu(rows: Tensor) -> Tensor:
        return 0.5 * rows * (1 + torch.tanh(math.sqrt(2 / math.pi) * (rows + 0.044715 * rows**3)))

    angles = [0.0 * frequency for frequency in range(128)]  # of time zero
    embedded = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles]).double()
    condition = silu(affine("sigma_map.mlp.2", silu(affine("sigma_map.mlp.0", embedded))))
    stream = tensors["vocab_embed.embedding"][tokens]
    for block in range(sum(name.endswith("attn_out.weight") for name in tensors)):
        name = f"blocks.{block}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = affine(
            f"{name}.adaLN_modulation", condition
        ).chunk(6)
        rows = norm(f"{name}.norm1", stream) * (1 + scale_a) + shift_a
        queries, keys, values = affine(f"{name}.attn_qkv", rows).chunk(3, dim=-1)
        read = attended(queries, keys, values, tensors["rotary_emb.inv_freq"], heads)
        stream = stream + gate_a * affine(f"{name}.attn_out", read)
        rows = norm(f"{name}.norm2", stream) * (1 + scale_m) + shift_m
        stream = stream + gate_m * affine(f"{name}.mlp.2", gelu(affine(f"{name}.mlp.0", rows)))
    shift, scale = affine("output_layer.adaLN_modulation", condition).chunk(2)
    logits = affine("output_layer.linear", norm("output_layer.norm_final", stream) * (1 + scale) + shift)
    logits[:, -1] = -math.inf  # the substitution parameterization never predicts the mask
    return (logits - logits.logsumexp(-1, keepdim=True))[:, :-1]


def attended(queries: Tensor, keys: Tensor, values: Tensor, frequencies: Tensor, heads: int) -> Tensor:
    """Return what each position reads, head by head and position by position, (L, D)."""
    head_width = queries.shape[1] // heads
    pieces = []
    for head in range(heads):
        columns = slice(head * head_width, (head + 1) * head_width)
        turned_queries = rotated(queries[:, columns], frequencies)
        turned_keys = rotated(keys[:, columns], frequencies)
        rows = [
            ((turned_keys @ query) / math.sqrt(head_width)).softmax(0) @ values[:, columns]
            for query in turned_queries
        ]
        pieces.append(torch.stack(rows))
    return torch.cat(pieces, dim=-1)


def rotated(rows: Tensor, frequencies: Tensor) -> Tensor:
    """Return rows (L, K) with each pair (i, i + K/2) turned by position times frequency i."""
    half = len(frequencies)
    turned = rows.clone()
    for position in range(len(rows)):
        for i in range(half):
            angle = float(position * frequencies[i])
            first, second = rows[position, i], rows[position, i + half]
            turned[position, i] = first * math.cos(angle) - second * math.sin(angle)
            turned[position, i + half] = second * math.cos(angle) + first * math.sin(angle)
    return turned
