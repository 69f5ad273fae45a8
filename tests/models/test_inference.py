"""Networks made ready to generate: the same rows compiled, nearly the same in 8 and 16 bits."""

import copy

import pytest
import torch

from fewstep.models.inference import Inference
from fewstep.models.language_model import AutoregressiveLM, Denoiser

TOKENS = torch.randint(0, 30, (3, 24), generator=torch.Generator().manual_seed(0))
ROWS = torch.rand(3, 24, generator=torch.Generator().manual_seed(1)) < 0.3


def logits(model: Denoiser, rows: torch.Tensor = ROWS) -> torch.Tensor:
    with torch.inference_mode():
        return model.head(model.hidden(TOKENS, rows))


def prepared(model: Denoiser | AutoregressiveLM, **settings):
    model = copy.deepcopy(model)
    Inference(device="cpu", **settings).prepare(model)
    return model


def test_by_default_a_network_is_folded_and_float32(tiny_denoiser: Denoiser) -> None:
    model = prepared(tiny_denoiser)
    assert model.backbone.condition() is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model), logits(tiny_denoiser), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_is_the_same(tiny_denoiser: Denoiser, mode: str) -> None:
    """For several numbers of rows, so that a graph that fits one shape alone would show."""
    model, plain = prepared(tiny_denoiser, compile=mode), prepared(tiny_denoiser)
    for rows in (ROWS, ROWS.roll(1, dims=1), torch.ones_like(ROWS), ROWS & (ROWS.cumsum(1) < 3)):
        torch.testing.assert_close(logits(model, rows), logits(plain, rows), rtol=1e-4, atol=1e-4)
    cache = model.new_cache(3, 24)
    with torch.inference_mode():
        model.hidden(TOKENS, ROWS, cache)
        cached = model.head(model.hidden(TOKENS, ROWS, cache))
    torch.testing.assert_close(cached, logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_autoregression_is_the_same(tiny_autoregressive: AutoregressiveLM) -> None:
    model, plain = prepared(tiny_autoregressive, compile="default"), prepared(tiny_autoregressive)
    cache = model.new_cache(3, 24)
    with torch.inference_mode():
        rows = torch.cat([model.hidden(piece, cache) for piece in TOKENS.split([5, 1, 1, 17], dim=1)], dim=1)
        torch.testing.assert_close(rows, plain.hidden(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_int8_changes_the_logits_a_little(tiny_denoiser: Denoiser) -> None:
    model, plain = prepared(tiny_denoiser, int8=True), logits(prepared(tiny_denoiser))
    difference = (logits(model) - plain).abs().max() / plain.abs().max()
    assert 0 < difference < 0.1
    assert model.backbone.blocks[0].attn_qkv.weight.qdata.dtype == torch.int8
    assert model.output_head.weight.dtype == torch.float32


def test_bfloat16_has_float32_logits(tiny_denoiser: Denoiser) -> None:
    model = prepared(tiny_denoiser, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    found, plain = logits(model), logits(prepared(tiny_denoiser))
    assert found.dtype == torch.float32
    assert 0 < (found - plain).abs().max() / plain.abs().max() < 0.1


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', and torch finds no CUDA here; choose cpu"):
        Inference(device="cuda")
    with pytest.raises(ValueError, match="there is no device 'gpu'; choose cpu or cuda"):
        Inference(device="gpu")
    assert (Inference().torch_device, Inference().dtype) == ("cpu", torch.float32)


def test_int8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"int8 needs torchao.*pip install 'fewstep\[int8\]'"):
        Inference(int8=True)
