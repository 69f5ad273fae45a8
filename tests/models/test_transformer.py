"""The transformer against its published formula, folded and unfolded, causal and not."""

import copy

import pytest
import torch

from fewstep.models.attention import attention
from fewstep.models.folding import fold
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.models.transformer import Block, Transformer
from tests.reference import transformer_logits


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 30, (3, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Denoiser | AutoregressiveLM, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model.hidden(inputs))


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
def test_forward_is_the_published_formula(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    weights = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    inputs = tokens(11)
    computed = logits(model, inputs)
    for row, sequence in zip(computed, inputs, strict=True):
        expected = transformer_logits(
            weights, sequence, num_layers=2, num_heads=2, causal=kind == "tiny_autoregressive"
        )
        torch.testing.assert_close(row.double(), expected, rtol=1e-4, atol=2e-4)


def test_a_pass_with_gradients_is_a_pass_without(tiny_denoiser: Denoiser) -> None:
    """Without gradients other kernels sum in another order, and some work in place; inputs stay alone."""
    inputs = tokens(9)
    found = tiny_denoiser.head(tiny_denoiser.hidden(inputs))
    torch.testing.assert_close(found, logits(tiny_denoiser, inputs), rtol=1e-5, atol=1e-5)


def test_every_parameter_takes_part(tiny_denoiser: Denoiser) -> None:
    """A modulation that is computed and not applied would leave a gradient of zero."""
    tiny_denoiser(tokens(9)).logits.square().mean().backward()
    for name, parameter in tiny_denoiser.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
def test_folded_equals_unfolded(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    inputs = tokens(13)
    unfolded = logits(model, inputs)
    plain_adaln = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in plain_adaln.named_parameters():
            if "adaLN_modulation" in name:
                parameter.zero_()
    assert (logits(plain_adaln, inputs) - unfolded).abs().max() > 0.1, "adaLN must matter in this test"
    folded = logits(copy.deepcopy(model).folded(), inputs)
    torch.testing.assert_close(folded, unfolded, rtol=0, atol=2e-5 * unfolded.abs().max().item())


def test_folding_removes_adaln_and_a_second_time_changes_nothing(tiny_denoiser: Denoiser) -> None:
    tiny_denoiser.folded()
    names = [name for name, _ in tiny_denoiser.named_parameters()]
    assert not any("adaLN" in name or "sigma_map" in name or "norm" in name for name in names)
    before = {name: tensor.clone() for name, tensor in tiny_denoiser.state_dict().items()}
    fold(tiny_denoiser.backbone)
    after = tiny_denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folding_leaves_the_output_head_of_its_width(tiny_denoiser: Denoiser) -> None:
    assert tiny_denoiser.folded().output_head.weight.shape == (29, 16)


def test_causal_model_does_not_see_the_future(tiny_autoregressive: AutoregressiveLM) -> None:
    inputs = tokens(12)
    changed = inputs.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    before, after = logits(tiny_autoregressive, inputs), logits(tiny_autoregressive, changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert ((after[:, 7:] - before[:, 7:]).abs().amax(-1) > 1e-4).all()


def test_denoiser_sees_both_directions(tiny_denoiser: Denoiser) -> None:
    inputs = tokens(12)
    changed = inputs.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    difference = (logits(tiny_denoiser, changed) - logits(tiny_denoiser, inputs)).abs().amax(-1)
    assert (difference > 1e-4).all()


def test_sequences_of_a_batch_do_not_see_each_other(tiny_denoiser: Denoiser) -> None:
    inputs = tokens(8)
    alone = torch.cat([logits(tiny_denoiser, row[None]) for row in inputs])
    torch.testing.assert_close(logits(tiny_denoiser, inputs), alone, rtol=1e-5, atol=1e-5)


def test_attention_aligns_the_last_query_with_the_last_key() -> None:
    draws = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    queries, keys, values = draws
    full = attention(queries, keys, values, True)
    for first in (1, 3, 5):
        part = attention(queries[:, :, first:], keys, values, True)
        torch.testing.assert_close(part, full[:, :, first:], rtol=1e-5, atol=1e-6)


def test_fresh_weights_are_a_plain_pre_norm_transformer() -> None:
    model = Transformer(
        vocab_size=50, width=64, num_layers=8, num_heads=4, condition_width=16, mlp_ratio=4, causal=False
    )
    model.initialize(torch.Generator().manual_seed(0))
    block = model.blocks[0]
    assert isinstance(block, Block)
    modulation = block.modulations(model.condition())[0]
    assert modulation is not None and modulation.gate is not None
    assert modulation.shift.tolist() == [0.0] * 64
    assert modulation.scale.tolist() == [0.0] * 64
    assert modulation.gate.tolist() == [1.0] * 64
    assert block.attn_qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn_out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # sqrt(2 * 8) = 4
    assert block.mlp[2].weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.output_layer.norm_final.weight.tolist() == [1.0] * 64


def test_initial_weights_are_a_function_of_the_generator() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = Transformer(
            vocab_size=9, width=8, num_layers=1, num_heads=2, condition_width=4, mlp_ratio=2, causal=True
        )
        model.initialize(torch.Generator().manual_seed(seed))
        return model.state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn_qkv.weight"], other["blocks.0.attn_qkv.weight"])
