"""Slow and obvious versions of what the package computes, written from the published formulas.

They share no code with the package. All of them work in the precision of their inputs, so that
float64 inputs give answers to compare with.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor

# --- the transformer: DiT with adaLN (Peebles & Xie, 2023) and rotary attention (Su et al., 2021) ---


def layer_norm(inputs: Tensor, weight: Tensor) -> Tensor:
    mean = inputs.mean(-1, keepdim=True)
    variance = (inputs - mean).square().mean(-1, keepdim=True)
    return (inputs - mean) / torch.sqrt(variance + 1e-5) * weight


def silu(inputs: Tensor) -> Tensor:
    return inputs / (1 + torch.exp(-inputs))


def gelu_tanh(inputs: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (inputs + 0.044715 * inputs**3)
    return 0.5 * inputs * (1 + torch.tanh(inner))


def time_embedding(time: float, size: int) -> Tensor:
    """Cosines, then sines, of `time` at size / 2 geometric frequencies from 1 down to 1 / 10000."""
    half = size // 2
    frequencies = [math.exp(-math.log(10_000.0) * i / half) for i in range(half)]
    angles = [time * frequency for frequency in frequencies]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def rotated(head: Tensor) -> Tensor:
    """Rotate (L, K): the pair (j, j + K/2) of position i by the angle i / 10000^(2j / K)."""
    length, width = head.shape
    result = head.clone()
    for i in range(length):
        for j in range(width // 2):
            angle = i / 10_000 ** (2 * j / width)
            cosine, sine = math.cos(angle), math.sin(angle)
            first, second = head[i, j], head[i, j + width // 2]
            result[i, j] = first * cosine - second * sine
            result[i, j + width // 2] = second * cosine + first * sine
    return result


def attention(normed: Tensor, qkv_weight: Tensor, num_heads: int, causal: bool) -> Tensor:
    """Softmax attention of one sequence (L, D), head by head."""
    length, width = normed.shape
    queries, keys, values = (normed @ qkv_weight.T).split(width, dim=1)
    outputs = []
    for q, k, v in zip(
        *(part.split(width // num_heads, dim=1) for part in (queries, keys, values)), strict=True
    ):
        scores = rotated(q) @ rotated(k).T / math.sqrt(q.shape[1])
        if causal:
            later = torch.ones(length, length).triu(1).bool()
            scores = scores.masked_fill(later, -math.inf)
        outputs.append(torch.softmax(scores, dim=1) @ v)
    return torch.cat(outputs, dim=1)


def transformer_logits(
    weights: Mapping[str, Tensor], tokens: Tensor, *, num_layers: int, num_heads: int, causal: bool
) -> Tensor:
    """Return the logits (L, V) of one sequence `tokens` (L,), in float64, unfolded adaLN and all."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    condition = time_embedding(0.0, w["sigma_map.mlp.0.weight"].shape[1])
    condition = silu(w["sigma_map.mlp.0.weight"] @ condition + w["sigma_map.mlp.0.bias"])
    condition = silu(w["sigma_map.mlp.2.weight"] @ condition + w["sigma_map.mlp.2.bias"])
    stream = w["vocab_embed.embedding"][tokens]
    for layer in range(num_layers):
        b = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in w.items()}
        modulation = b["adaLN_modulation.weight"] @ condition + b["adaLN_modulation.bias"]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6)
        normed = layer_norm(stream, b["norm1.weight"]) * (1 + scale1) + shift1
        attended = attention(normed, b["attn_qkv.weight"], num_heads, causal)
        stream = stream + gate1 * (attended @ b["attn_out.weight"].T)
        normed = layer_norm(stream, b["norm2.weight"]) * (1 + scale2) + shift2
        inner = gelu_tanh(normed @ b["mlp.0.weight"].T + b["mlp.0.bias"])
        stream = stream + gate2 * (inner @ b["mlp.2.weight"].T + b["mlp.2.bias"])
    modulation = w["output_layer.adaLN_modulation.weight"] @ condition
    shift, scale = (modulation + w["output_layer.adaLN_modulation.bias"]).chunk(2)
    normed = layer_norm(stream, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return normed @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


# --- losses between student logits (N, V) and teacher logits (N, V) or tokens (N,), one per row ---


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack(
        [-torch.log(torch.softmax(row, 0)[int(k)]) for row, k in zip(logits, tokens, strict=True)]
    )


def reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    p, q = torch.softmax(logits, 1), torch.softmax(teacher_logits, 1)
    return (p * torch.log(p / q)).sum(1)


def forward_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return reverse_kl(teacher_logits, logits)


def jensen_shannon(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    p, q = torch.softmax(logits, 1), torch.softmax(teacher_logits, 1)
    middle = (p + q) / 2
    return (p * torch.log(p / middle)).sum(1) / 2 + (q * torch.log(q / middle)).sum(1) / 2


def total_variation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return (torch.softmax(logits, 1) - torch.softmax(teacher_logits, 1)).abs().sum(1) / 2


def mse(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over the V tokens of the squared error of log-probabilities."""
    log_p = torch.log(torch.softmax(logits, 1))
    log_q = torch.log(torch.softmax(teacher_logits, 1))
    return ((log_p - log_q) ** 2).sum(1) / logits.shape[1]


DIVERGENCES = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "mse": mse,
}


# --- the bound of a masked diffusion model, by enumeration ---


def exact_bound(log_probabilities: Callable[[Tensor], Tensor], clean: Tensor, mask_token_id: int) -> float:
    """Return the negative ELBO of one sequence (L,) under alpha(t) = 1 - t, in nats.

    The integral over t of 1/t * t^n (1 - t)^(L - n) is (n - 1)! (L - n)! / L! for n masked positions.
    `log_probabilities` maps tokens (L,) to (L, V).
    """
    length = len(clean)
    total = 0.0
    for n in range(1, length + 1):
        weight = math.factorial(n - 1) * math.factorial(length - n) / math.factorial(length)
        for positions in map(list, combinations(range(length), n)):
            corrupted = clean.clone()
            corrupted[positions] = mask_token_id
            predicted = log_probabilities(corrupted)
            total -= weight * float(predicted[positions, clean[positions]].sum())
    return total
