"""The two language models: a masked diffusion denoiser and an autoregressive baseline.

Both are the same transformer and both are `transformers` models, so `from_pretrained`,
`save_pretrained` and `push_to_hub` work, and so do `AutoModelForMaskedLM` and
`AutoModelForCausalLM` after `import fewstep`.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput

from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig, TransformerConfig
from fewstep.models.folding import fold
from fewstep.models.kv_cache import KVCache
from fewstep.models.linear import linear
from fewstep.models.row_pass import DenoiserCache, RowPass
from fewstep.models.transformer import Transformer


class _LanguageModel(PreTrainedModel):
    """What denoiser and autoregressive model share: a backbone and a linear head over V tokens."""

    config: TransformerConfig
    base_model_prefix = "backbone"
    causal: bool

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.backbone = Transformer(
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            condition_width=config.condition_size,
            mlp_ratio=config.mlp_ratio,
            causal=self.causal,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `Transformer` draws its own weights, and `fewstep.load` accepts no missing ones."""

    @property
    def vocab_size(self) -> int:
        """V, the number of real tokens."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        """The context length the model was trained on."""
        return self.config.max_position_embeddings

    @max_length.setter
    def max_length(self, length: int) -> None:
        self.config.max_position_embeddings = length

    @property
    def output_head(self) -> nn.Linear:
        """The linear map from hidden rows to logits over the V real tokens."""
        return self.backbone.output_layer.linear

    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return the float32 logits (..., V) of hidden rows (..., D)."""
        return linear(self.output_head, hidden_rows).float()

    def folded(self) -> "_LanguageModel":
        """Fold adaLN into the linear layers, in place, for inference; return self.

        A folded model computes the same and cannot be trained further or saved.
        """
        fold(self.backbone)
        return self.eval()

    def recompute_activations(self, wanted: bool) -> None:
        """Let the backward pass recompute each block, or not."""
        self.backbone.activation_checkpointing = wanted


def real_tokens(attention_mask: Tensor | None) -> Tensor | None:
    """Return where tokens are not padding, (B, L) bool; None if none is, which needs no mask."""
    if attention_mask is None or attention_mask.all():
        return None
    return attention_mask.bool()


class Denoiser(_LanguageModel):
    """A bidirectional transformer that predicts the clean token at each masked position.

    It takes no time: the masks tell it how noisy its input is.
    """

    config: DenoiserConfig  # pyright: ignore[reportIncompatibleVariableOverride]  transformers reads it
    config_class = DenoiserConfig
    causal = False

    @property
    def mask_token_id(self) -> int:
        """The input id of a masked position: V, which has an embedding but no logit."""
        return self.config.vocab_size

    def hidden(
        self, tokens: Tensor, rows: Tensor | None = None, cache: DenoiserCache | None = None
    ) -> Tensor:
        """Return the hidden rows (B, L, D) of tokens (B, L), or those (N, D) that the mask `rows` chooses.

        Sequences in which no row is chosen cost nothing. With a `cache`, which needs `rows`, only they
        and the rows whose token has changed are computed: see `row_pass`.
        """
        if rows is None:
            assert cache is None, "a cached pass is for chosen rows"
            return self.backbone(tokens)
        if not rows.any():
            return self.backbone.vocab_embed.embedding.new_zeros(0, self.config.hidden_size)
        return RowPass(tokens, rows, cache).hidden(self.backbone)

    def new_cache(self, batch: int, length: int) -> DenoiserCache:
        """Return an empty cache for `batch` sequences of `length` positions."""
        config = self.config
        return DenoiserCache(
            num_layers=config.num_hidden_layers,
            batch=batch,
            length=length,
            num_heads=config.num_attention_heads,
            head_width=config.hidden_size // config.num_attention_heads,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Return logits (B, L, V), and the mean cross-entropy where `labels` is not -100.

        `attention_mask` (B, L) is 0 where a sequence is padded, which changes nothing for the rest of it.
        """
        logits = self.head(self.backbone(input_ids, real_BL=real_tokens(attention_mask)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class AutoregressiveLM(_LanguageModel):
    """The same transformer made causal: each position predicts the token after it.

    A sequence begins with the extra input id V, so that all of its L tokens are predicted, and
    embedding and head have the same shapes as the denoiser's.
    """

    config: AutoregressiveConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = AutoregressiveConfig
    causal = True

    @property
    def start_token_id(self) -> int:
        """The input id before the first token: V, which has an embedding but no logit."""
        return self.config.vocab_size

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for `batch` sequences of up to `capacity` positions."""
        config = self.config
        return KVCache(
            num_layers=config.num_hidden_layers,
            batch=batch,
            num_heads=config.num_attention_heads,
            capacity=capacity,
            head_width=config.hidden_size // config.num_attention_heads,
            dtype=self.dtype,
            device=self.device,
        )

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the hidden rows (B, L, D) of tokens (B, L) that follow those in `cache`."""
        return self.backbone(tokens, cache)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Return logits (B, L, V); row i predicts token i + 1, to which `labels` are aligned here.

        `attention_mask` (B, L) is 0 where a sequence is padded, which changes nothing for the rest of it.
        """
        logits = self.head(self.backbone(input_ids, real_BL=real_tokens(attention_mask)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


LanguageModel = Denoiser | HuggingFaceDenoiser | AutoregressiveLM
"""What a checkpoint holds."""


def denoiser_from_autoregressive(model: AutoregressiveLM) -> Denoiser:
    """Return a denoiser of the same shape that starts from the weights of `model`.

    Every parameter has its counterpart; the embedding of the start becomes that of the mask.
    """
    shape = {key: value for key, value in model.config.to_diff_dict().items() if key in SHAPE_KEYS}
    denoiser = Denoiser(DenoiserConfig(**shape))
    denoiser.load_state_dict(model.state_dict())
    return denoiser


SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "condition_size",
    "mlp_ratio",
)


def register() -> None:
    """Make the transformers Auto classes know both models; `import fewstep` arranges for it."""
    for config, auto_model, model in (
        (DenoiserConfig, AutoModelForMaskedLM, Denoiser),
        (AutoregressiveConfig, AutoModelForCausalLM, AutoregressiveLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto_model.register(config, model, exist_ok=True)
