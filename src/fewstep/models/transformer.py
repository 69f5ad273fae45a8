"""The transformer behind both language models: bidirectional for the denoiser, causal for the AR baseline.

The parameter names and shapes are those of the published MDLM and SDTT checkpoints (a DiT with
rotary attention), so that their weights map one to one. Those models take no time: the condition of
adaLN is a constant vector, and so are the shifts, scales and gates computed from it. They enter
here as the weight and bias of the LayerNorm and as a factor on the residual, which costs nothing
per token; `fold` removes them altogether for inference.

Shape letters: B batch, L sequence length, D model width, H heads, K width of a head.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.models.kv_cache import KVCache

FREQUENCY_EMBEDDING_SIZE = 256
ROTARY_BASE = 10_000.0


class Modulation(NamedTuple):
    """adaLN output for one sub-layer, each (D,): `shift` and `scale` of its input, `gate` of its output."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None


class ModulatedLayerNorm(nn.Module):
    """LayerNorm without bias whose output is multiplied by `1 + scale` and moved by `shift`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(width))
        self.width = width

    def forward(self, inputs: Tensor, modulation: Modulation | None) -> Tensor:
        if modulation is None:
            return F.layer_norm(inputs, (self.width,), self.weight)
        weight = self.affine_weight(modulation)
        return F.layer_norm(inputs, (self.width,), weight.to(inputs), modulation.shift.to(inputs))

    def affine_weight(self, modulation: Modulation) -> Tensor:
        assert self.weight is not None, "folded away"
        return self.weight * (1 + modulation.scale)


class SigmaMap(nn.Module):
    """The time condition of the published checkpoints, evaluated at its constant, zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_EMBEDDING_SIZE, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self) -> Tensor:
        """Return the condition, (condition width,)."""
        weight = next(self.parameters())
        cosines_then_sines = weight.new_zeros(FREQUENCY_EMBEDDING_SIZE)
        cosines_then_sines[: FREQUENCY_EMBEDDING_SIZE // 2] = 1.0  # cos(0), sin(0) of each frequency
        return F.silu(self.mlp(cosines_then_sines))


class RotaryEmbedding(nn.Module):
    """Rotary position embedding, rotating the two halves of each head (Su et al., 2021)."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (..., K), of integer `positions` (...)."""
        exponents = torch.arange(0, self.head_width, 2, device=positions.device) / self.head_width
        angles = positions[..., None].float() * ROTARY_BASE**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate `heads` (B, H, L, K) by the angles of their positions."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines.to(heads) + torch.cat([-second, first], dim=-1) * sines.to(heads)


class Block(nn.Module):
    """Pre-norm attention and MLP, each modulated by adaLN and gated into the residual stream."""

    def __init__(self, width: int, num_heads: int, condition_width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = ModulatedLayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = ModulatedLayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * width, width),
        )
        self.adaLN_modulation: nn.Linear | None = nn.Linear(condition_width, 6 * width)

    def modulations(self, condition: Tensor | None) -> tuple[Modulation | None, Modulation | None]:
        """Return the modulations of attention and MLP; None for each once folded."""
        if self.adaLN_modulation is None:
            return None, None
        pieces = self.adaLN_modulation(condition).chunk(6)
        return Modulation(*pieces[:3]), Modulation(*pieces[3:])

    def forward(
        self,
        stream_BLD: Tensor,
        condition: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        causal: bool,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        for_attention, for_mlp = self.modulations(condition)
        attended = self.attend(self.norm1(stream_BLD, for_attention), rotary, causal, cache, layer)
        stream_BLD = add_gated(stream_BLD, attended, for_attention)
        return add_gated(stream_BLD, self.mlp(self.norm2(stream_BLD, for_mlp)), for_mlp)

    def attend(
        self,
        normed_BLD: Tensor,
        rotary: tuple[Tensor, Tensor],
        causal: bool,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        batch, length, width = normed_BLD.shape
        qkv = self.attn_qkv(normed_BLD).view(batch, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        queries, keys = rotate(queries, *rotary), rotate(keys, *rotary)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        attended = attention(queries, keys, values, causal)
        return self.attn_out(attended.transpose(1, 2).reshape(batch, length, width))


def attention(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention, (B, H, L, K) each; the only entry point to it.

    With `causal`, the last query is at the last key, and each query sees no key behind its own.
    """
    num_queries, num_keys = queries.shape[-2], keys.shape[-2]
    if not causal or num_queries == 1:
        return F.scaled_dot_product_attention(queries, keys, values)
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=queries.device)
    visible = visible.tril(num_keys - num_queries)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)


def add_gated(stream: Tensor, update: Tensor, modulation: Modulation | None) -> Tensor:
    if modulation is None or modulation.gate is None:
        return stream + update
    return torch.addcmul(stream, modulation.gate.to(stream), update)


class OutputLayer(nn.Module):
    """Final LayerNorm, modulated, and the linear head over the V real tokens."""

    def __init__(self, width: int, vocab_size: int, condition_width: int) -> None:
        super().__init__()
        self.norm_final = ModulatedLayerNorm(width)
        self.linear = nn.Linear(width, vocab_size)
        self.adaLN_modulation: nn.Linear | None = nn.Linear(condition_width, 2 * width)

    def modulation(self, condition: Tensor | None) -> Modulation | None:
        if self.adaLN_modulation is None:
            return None
        return Modulation(*self.adaLN_modulation(condition).chunk(2), gate=None)


class TokenEmbedding(nn.Module):
    """The embedding table, (V + 1, D): one row for each token and one for the extra input id."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)


class Transformer(nn.Module):
    """Token ids (B, L) to hidden rows (B, L, D), and hidden rows to logits over V tokens.

    Args:
        vocab_size: V, the number of real tokens; id V is the extra input id (the mask of a
            denoiser, the start of an autoregressive model).
        width, num_layers, num_heads: D, the number of blocks, and the heads of each.
        condition_width: width of the constant adaLN condition.
        causal: whether a position sees only itself and earlier ones.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        condition_width: int,
        mlp_ratio: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.vocab_embed = TokenEmbedding(vocab_size + 1, width)
        self.sigma_map: SigmaMap | None = SigmaMap(condition_width)
        self.rotary_emb = RotaryEmbedding(width // num_heads)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, condition_width, mlp_ratio) for _ in range(num_layers)
        )
        self.output_layer = OutputLayer(width, vocab_size, condition_width)
        if not self.vocab_embed.embedding.is_meta:
            self.initialize(torch.default_generator)

    def condition(self) -> Tensor | None:
        """Return the constant adaLN condition; None once folded."""
        return None if self.sigma_map is None else self.sigma_map()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the hidden rows (B, L, D) of `tokens` (B, L), ready for `output_layer.linear`.

        With a `cache`, the tokens follow those that it holds, and are added to it.
        """
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        rotary = self.rotary_emb(positions)
        condition = self.condition()
        stream_BLD = self.vocab_embed(tokens)
        for layer, block in enumerate(self.blocks):
            stream_BLD = block(stream_BLD, condition, rotary, self.causal, cache, layer)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.output_layer.norm_final(stream_BLD, self.output_layer.modulation(condition))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 0.02^2), residual outputs scaled by 1 / sqrt(2 * blocks).

        adaLN starts as the identity with open gates, so that the model starts as a plain pre-norm
        transformer.
        """
        width = self.vocab_embed.embedding.shape[1]
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name else 0.0)
                if name.startswith("blocks") and name.endswith("adaLN_modulation.bias"):
                    for gate in (2, 5):
                        parameter[gate * width : (gate + 1) * width] = 1.0
            elif "adaLN_modulation" in name:
                parameter.zero_()
            else:
                residual = name.endswith(("attn_out.weight", "mlp.2.weight")) and "blocks" in name
                std = 0.02 / math.sqrt(2 * len(self.blocks)) if residual else 0.02
                parameter.normal_(0.0, std, generator=generator)


@torch.no_grad()
def fold(transformer: Transformer) -> None:
    """Fold adaLN into the neighbouring linear layers, in place and exactly (to rounding).

    LayerNorm's weight and scale multiply the columns of the linear layer after it, the shift becomes
    its bias, and the gate multiplies the rows of the layer that writes to the residual stream.
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
