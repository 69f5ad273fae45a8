"""The networks that benchmarks run: shared weights, sizes, and what cannot fit."""

import pytest
import torch

from fewstep.benchmark import networks
from fewstep.models.config import SHAPES

CPU = torch.device("cpu")


def test_the_pair_shares_its_weights_and_each_computes_its_own(nano: str) -> None:
    denoiser, autoregressive = networks.new_pair(nano, CPU)
    theirs = dict(autoregressive.named_parameters())
    for name, parameter in denoiser.named_parameters():
        if not name.endswith("attn_qkv.bias") and "mlp.0.bias" not in name and "linear.bias" not in name:
            assert parameter.data_ptr() == theirs[name].data_ptr(), name
    tokens_BL = torch.randint(0, 29, (2, 8), generator=torch.Generator().manual_seed(0))
    changed_BL = tokens_BL.clone()
    changed_BL[:, -1] = (tokens_BL[:, -1] + 1) % 29
    with torch.no_grad():
        torch.testing.assert_close(
            autoregressive.hidden(tokens_BL)[:, :-1], autoregressive.hidden(changed_BL)[:, :-1]
        )
        difference = denoiser.hidden(tokens_BL)[:, :-1] - denoiser.hidden(changed_BL)[:, :-1]
        assert difference.abs().max() > 1e-3
        hidden_of_one = autoregressive.hidden(tokens_BL[:, :1])
        torch.testing.assert_close(hidden_of_one, denoiser.hidden(tokens_BL[:, :1]))


def test_an_unfolded_pair_computes_the_same(nano: str) -> None:
    """Folding shared weights twice would be wrong for trained ones; for untrained ones it is exact."""
    torch_state = torch.random.get_rng_state()
    trainable = networks.new_denoiser(nano, CPU).eval()
    torch.random.set_rng_state(torch_state)
    folded, _ = networks.new_pair(nano, CPU)
    tokens_BL = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(folded.hidden(tokens_BL), trainable.hidden(tokens_BL))


@pytest.mark.parametrize(
    ("shape", "millions"), [("small", 169), ("medium", 424), ("large", 863), ("xlarge", 1453)]
)
def test_shapes_are_of_the_published_sizes(shape: str, millions: int) -> None:
    """The paper calls the largest 1.3B: that counts one of its two V x D matrices."""
    assert networks.num_parameters(shape) / 1e6 == pytest.approx(millions, rel=0.005)
    assert networks.weight_bytes(shape, CPU) == 4 * networks.num_parameters(shape)


def test_gpt2_is_of_the_same_shape(nano: str) -> None:
    gpt2 = networks.new_gpt2(nano, 24, CPU)
    config = SHAPES[nano]
    matrices = [parameter for parameter in gpt2.transformer.h[0].parameters() if parameter.ndim == 2]
    block = sum(parameter.numel() for parameter in matrices)
    assert block == networks.sizes_of(nano, CPU).block_weights
    assert len(gpt2.transformer.h) == config["num_hidden_layers"]
    assert gpt2.lm_head.out_features == config["vocab_size"]
    assert not gpt2.training


def test_memory_of_a_generation(nano: str) -> None:
    # One position of one text: two caches of keys and values of 2 blocks, 16 rows' worth of activations.
    positions = 3 * 8 * 16 * 4
    expected = (2 * 2 * 2 + 16) * positions + networks.WORKSPACE_BYTES
    assert networks.generation_bytes(nano, 3, 8, CPU) == expected


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "available_bytes", lambda _: int(2e9))
    networks.check_fits("this", int(1.9e9), CPU, "take less")
    with pytest.raises(ValueError) as refusal:
        networks.check_fits("this", int(2.5e9), CPU, "take less")
    assert str(refusal.value) == "this needs about 2.5 GB of memory and 2.0 GB are free; take less"
    monkeypatch.setattr(networks, "available_bytes", lambda _: None)
    networks.check_fits("this", int(1e15), CPU, "take less")


def test_settings_out_of_range_are_refused() -> None:
    for call, message in (
        (
            lambda: networks.check_shape("huge", 8),
            "there is no shape 'huge'; choose one of tiny, mini, small",
        ),
        (lambda: networks.check_shape("tiny", 1025), "length is 1025; the models take 1 to 1024 tokens"),
        (lambda: networks.check_positive(steps=(4, 0)), "steps is 0; it must be at least 1"),
        (lambda: networks.check_positive(batch=-1), "batch is -1; it must be at least 1"),
        (lambda: networks.check_positive(steps=()), "steps is empty; name at least one"),
        (lambda: networks.check_cache_refresh(-1), "cache_refresh is -1; it is 1 for no cache"),
    ):
        with pytest.raises(ValueError) as refusal:
            call()
        assert str(refusal.value).startswith(message)
