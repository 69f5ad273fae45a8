"""The two models as `transformers` models: names, shapes, saving, loading, Auto classes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from fewstep.models.config import SHAPES, AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser, denoiser_from_autoregressive, register

INPUTS = torch.randint(0, 30, (2, 10), generator=torch.Generator().manual_seed(0))


def published_layout(
    vocab_size: int, width: int, num_layers: int, condition: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the published MDLM and SDTT checkpoints, their mask column left out."""
    layout = {
        "vocab_embed.embedding": (vocab_size + 1, width),
        "sigma_map.mlp.0.weight": (condition, 256),
        "sigma_map.mlp.0.bias": (condition,),
        "sigma_map.mlp.2.weight": (condition, condition),
        "sigma_map.mlp.2.bias": (condition,),
        "output_layer.norm_final.weight": (width,),
        "output_layer.linear.weight": (vocab_size, width),
        "output_layer.linear.bias": (vocab_size,),
        "output_layer.adaLN_modulation.weight": (2 * width, condition),
        "output_layer.adaLN_modulation.bias": (2 * width,),
    }
    for layer in range(num_layers):
        block = f"blocks.{layer}."
        layout |= {
            block + "norm1.weight": (width,),
            block + "attn_qkv.weight": (3 * width, width),
            block + "attn_out.weight": (width, width),
            block + "norm2.weight": (width,),
            block + "mlp.0.weight": (4 * width, width),
            block + "mlp.0.bias": (4 * width,),
            block + "mlp.2.weight": (width, 4 * width),
            block + "mlp.2.bias": (width,),
            block + "adaLN_modulation.weight": (6 * width, condition),
            block + "adaLN_modulation.bias": (6 * width,),
        }
    return layout


def on_meta(shape: str) -> Denoiser:
    with torch.device("meta"):
        return Denoiser(DenoiserConfig(vocab_size=50257, **SHAPES[shape]))


def test_layout_is_the_published_one() -> None:
    state = on_meta("small").state_dict()
    shapes = {name.removeprefix("backbone."): tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == published_layout(50257, 768, 12, 128)


@pytest.mark.parametrize(
    ("shape", "millions"), [("small", 169.6), ("medium", 424.5), ("large", 863.2), ("xlarge", 1452.8)]
)
def test_parameter_counts_are_the_published_ones(shape: str, millions: float) -> None:
    """xlarge is called 1.3B after its 1,350 million parameters beside the output head."""
    model = on_meta(shape)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1) == millions
    if shape == "xlarge":
        assert round((count - model.output_head.weight.numel()) / 1e6) == 1350


def test_mistake_mask_column_leaking_into_the_head(tiny_denoiser: Denoiser) -> None:
    """The head has exactly V outputs; the mask has an embedding and no logit."""
    assert tiny_denoiser.mask_token_id == tiny_denoiser.vocab_size == 29
    assert tiny_denoiser.output_head.out_features == 29
    assert tiny_denoiser.backbone.vocab_embed.embedding.shape == (30, 16)
    logits = tiny_denoiser(torch.full((1, 4), tiny_denoiser.mask_token_id)).logits
    assert logits.shape == (1, 4, 29)


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
@torch.no_grad()
def test_save_and_load_is_bit_equal(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() | {"dtype": None} == model.config.to_diff_dict() | {"dtype": None}
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    torch.testing.assert_close(loaded(INPUTS).logits, model(INPUTS).logits)


@pytest.mark.parametrize(
    ("kind", "auto_class"),
    [("tiny_denoiser", AutoModelForMaskedLM), ("tiny_autoregressive", AutoModelForCausalLM)],
)
@torch.no_grad()
def test_auto_classes_know_the_models(
    kind: str, auto_class: type, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    register()
    register()  # a second time is harmless
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(INPUTS).logits, model(INPUTS).logits)


@torch.no_grad()
def test_denoiser_loss_is_over_labelled_positions(tiny_denoiser: Denoiser) -> None:
    labels = torch.full((2, 10), -100)
    labels[0, 3], labels[1, 8] = 5, 28
    output = tiny_denoiser(INPUTS, labels=labels)
    log_p = output.logits.log_softmax(-1)
    expected = -(log_p[0, 3, 5] + log_p[1, 8, 28]) / 2
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_autoregressive_loss_is_of_the_next_token(tiny_autoregressive: AutoregressiveLM) -> None:
    labels = INPUTS.clamp(max=28)
    output = tiny_autoregressive(INPUTS, labels=labels)
    log_p = output.logits.log_softmax(-1)
    each = [-log_p[b, i, labels[b, i + 1]] for b in range(2) for i in range(9)]
    torch.testing.assert_close(output.loss, torch.stack(each).mean())


@torch.no_grad()
def test_denoiser_from_autoregressive_copies_every_weight(tiny_autoregressive: AutoregressiveLM) -> None:
    denoiser = denoiser_from_autoregressive(tiny_autoregressive)
    assert type(denoiser) is Denoiser and type(denoiser.config) is DenoiserConfig
    old, new = tiny_autoregressive.state_dict(), denoiser.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert denoiser.max_length == tiny_autoregressive.max_length == 24
    # The last position sees all tokens in both models only in the first block, so outputs differ.
    assert not torch.equal(denoiser(INPUTS).logits, tiny_autoregressive(INPUTS).logits)
    new["backbone.output_layer.linear.bias"].fill_(7.0)
    assert not (old["backbone.output_layer.linear.bias"] == 7.0).any()


def test_denoiser_from_autoregressive_keeps_default_sizes() -> None:
    """Sizes that equal a default are absent from a configuration's difference to the defaults."""
    config = AutoregressiveConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, mlp_ratio=2
    )
    denoiser = denoiser_from_autoregressive(AutoregressiveLM(config))
    assert len(denoiser.backbone.blocks) == 12
    assert denoiser.config.mlp_ratio == 2 and denoiser.config.condition_size == 128


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 18 is no even multiple of num_attention_heads 6"):
        DenoiserConfig(hidden_size=18, num_attention_heads=6)


@torch.no_grad()
def test_head_gives_float32_logits_of_the_rows_asked_for(tiny_denoiser: Denoiser) -> None:
    hidden = tiny_denoiser.hidden(INPUTS)
    rows = hidden[INPUTS > 14]
    expected = F.linear(hidden, tiny_denoiser.output_head.weight, tiny_denoiser.output_head.bias)[INPUTS > 14]
    torch.testing.assert_close(tiny_denoiser.head(rows), expected)
    assert tiny_denoiser.bfloat16().head(rows.bfloat16()).dtype == torch.float32
