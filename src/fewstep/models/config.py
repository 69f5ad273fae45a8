"""Shapes of the language models, as `transformers` configurations."""

from typing import Any, Literal

from transformers import PreTrainedConfig

ShapeName = Literal["tiny", "mini", "small", "medium", "large", "xlarge"]
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4},
    "mini": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6},
    "small": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "medium": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "large": {"hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 16},
    "xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32},
}
"""small to large are the published models (169M, 424M and 863M with GPT-2's vocabulary); xlarge is
the 1.3B model of the paper's latency experiment."""


class TransformerConfig(PreTrainedConfig):
    """Shape of a fewstep transformer."""

    vocab_size: int = 50257
    """V, the real tokens; the extra input id (mask or start) is V itself."""
    hidden_size: int = 768
    """D, the width of the residual stream."""
    num_hidden_layers: int = 12
    """Number of blocks."""
    num_attention_heads: int = 12
    """Heads of each block."""
    max_position_embeddings: int = 1024
    """The context length that the model is trained on."""
    condition_size: int = 128
    """Width of the constant adaLN condition."""
    mlp_ratio: int = 4
    """Width of the MLP over `hidden_size`."""
    tie_word_embeddings: bool = False
    """Always False: the head has V rows, the embedding V + 1."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is no even multiple of num_attention_heads "
                f"{self.num_attention_heads}; rotary attention needs heads of an even width"
            )
        super().__post_init__(**kwargs)


class DenoiserConfig(TransformerConfig):
    """Shape of a masked diffusion denoiser."""

    model_type = "fewstep-denoiser"


class AutoregressiveConfig(TransformerConfig):
    """Shape of an autoregressive language model."""

    model_type = "fewstep-autoregressive"
