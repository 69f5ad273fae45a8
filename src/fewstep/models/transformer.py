"""The transformer behind both language models: bidirectional for the denoiser, causal for the AR baseline.

The parameter names and shapes are those of the published MDLM and SDTT checkpoints (a DiT with
rotary attention), so that their weights map one to one. Those models take no time: the condition of
adaLN is a constant vector, and so are the shifts, scales and gates computed from it. They enter
here as the weight and bias of the LayerNorm and as a factor on the residual, which costs nothing
per token; `folding.fold` removes them altogether for inference.

Shape letters: B batch, L sequence length, D model width, H heads, K width of a head.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.models.attention import Attend, Rotary, RotaryEmbedding, SequenceAttention, rotate
from fewstep.models.kv_cache import KVCache
from fewstep.models.linear import is_plain, linear

FREQUENCY_EMBEDDING_SIZE = 256


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


class Block(nn.Module):
    """Pre-norm attention and MLP, each modulated by adaLN and gated into the residual stream.

    The stream is (..., D) with any leading shape: a batch of whole sequences, or rows chosen of them.
    """

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
        self, stream: Tensor, condition: Tensor | None, rotary: Rotary, attend: Attend, asked: Tensor | None
    ) -> Tensor:
        """Return the stream after this block; only its `asked` rows (N, D), a mask, if that is given."""
        for_attention, for_mlp = self.modulations(condition)
        if asked is None:
            attended = attend(*self.project(stream, rotary, for_attention))
        else:
            attended = attend(*self.project_asked(stream, rotary, for_attention, asked))
            stream = stream[asked]
        return self.finish(stream, attended, for_attention, for_mlp)

    def project(
        self, stream: Tensor, rotary: Rotary, modulation: Modulation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys, and values of all rows, (..., H, K) each."""
        qkv = linear(self.attn_qkv, self.norm1(stream, modulation))
        queries, keys, values = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return rotate(queries, rotary), rotate(keys, rotary), values

    def project_asked(
        self, stream: Tensor, rotary: Rotary, modulation: Modulation | None, asked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `project` does, but queries of the `asked` rows alone, (N, H, K)."""
        if not is_plain(self.attn_qkv):
            queries, keys, values = self.project(stream, rotary, modulation)
            return queries[asked], keys, values
        normed = self.norm1(stream, modulation)
        width = normed.shape[-1]
        queries = linear(self.attn_qkv, normed[asked], outputs=slice(0, width))
        queries = queries.unflatten(-1, (self.num_heads, -1))
        others = linear(self.attn_qkv, normed, outputs=slice(width, None))
        keys, values = others.unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return rotate(queries, rotary.of(asked)), rotate(keys, rotary), values

    def finish(
        self, stream: Tensor, attended: Tensor, for_attention: Modulation | None, for_mlp: Modulation | None
    ) -> Tensor:
        """Return the stream after attention's output and the MLP."""
        expand, _, contract = self.mlp
        stream = add_gated(stream, self.attn_out, attended.flatten(-2), for_attention)
        inner = linear(expand, self.norm2(stream, for_mlp), gelu=True)
        return add_gated(stream, contract, inner, for_mlp)


def add_gated(stream: Tensor, layer: nn.Module, inputs: Tensor, modulation: Modulation | None) -> Tensor:
    """Return the stream plus a layer's output, gated unless the gate is folded into the layer."""
    if modulation is None:
        return linear(layer, inputs, residual=stream)
    assert modulation.gate is not None
    return torch.addcmul(stream, modulation.gate.to(stream), linear(layer, inputs))


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

    With `activation_checkpointing` set, the backward pass recomputes each block.
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
        self.activation_checkpointing = False
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

    def forward(self, tokens: Tensor, cache: KVCache | None = None, real_BL: Tensor | None = None) -> Tensor:
        """Return the hidden rows (B, L, D) of `tokens` (B, L), ready for `output_layer.linear`.

        With a `cache`, the tokens follow those that it holds, and are added to it. With `real_BL`, false
        where a sequence is padded, each sequence has the rows that it has alone: positions count from its
        first real token, and padding is not seen. The rows of padding mean nothing.
        """
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        if real_BL is not None:
            assert cache is None, "padded sequences have no cache"
            positions = (real_BL.cumsum(1) - 1).clamp_min(0)
        attends = [SequenceAttention(self.causal, cache, layer, real_BL) for layer in range(len(self.blocks))]
        hidden = self.run(self.vocab_embed(tokens), positions, attends)
        if cache is not None:
            cache.length += tokens.shape[1]
        return hidden

    def run(
        self, stream: Tensor, positions: Tensor, attends: Sequence[Attend], asked: Tensor | None = None
    ) -> Tensor:
        """Return the hidden rows of an embedded stream (..., D) at `positions` (...).

        Args:
            attends: the attention of each block.
            asked: which rows of the stream are wanted (...); by default all.
        """
        rotary = self.rotary_emb(positions)
        condition = self.condition()
        last = len(self.blocks) - 1
        for layer, (block, attend) in enumerate(zip(self.blocks, attends, strict=True)):
            inputs = (stream, condition, rotary, attend, asked if layer == last else None)
            if self.activation_checkpointing and torch.is_grad_enabled():
                stream = checkpoint(block, *inputs, use_reentrant=False)
            else:
                stream = block(*inputs)
        return self.output_layer.norm_final(stream, self.output_layer.modulation(condition))

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
