"""Learning-rate schedule, weight decay and moving average by hand."""

import math

import pytest
import torch
from torch import nn

from fewstep.models.language_model import Denoiser
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig


def rates(config: OptimizerConfig, *training_steps: int, of: int = 100) -> list[float]:
    return [config.learning_rate_at(training_step, of) for training_step in training_steps]


def test_warmup_rises_linearly_to_the_peak_and_stays() -> None:
    config = OptimizerConfig(learning_rate=0.8, warmup=4)
    assert rates(config, 0, 1, 2, 3, 4, 50, 99) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])


def test_no_warmup_starts_at_the_peak() -> None:
    assert rates(OptimizerConfig(learning_rate=0.8, warmup=0), 0, 1) == [0.8, 0.8]


def test_cosine_falls_to_the_final_fraction() -> None:
    config = OptimizerConfig(learning_rate=0.8, warmup=20, decay="cosine", final_fraction=0.25)
    assert rates(config, 9, 19, 20) == pytest.approx([0.4, 0.8, 0.8])
    middle = 0.8 * (0.25 + 0.75 * 0.5)
    quarter = 0.8 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates(config, 40, 60) == pytest.approx([quarter, middle])
    assert rates(config, 100, 200) == pytest.approx([0.2, 0.2])
    assert all(
        a > b for a, b in zip(rates(config, *range(20, 99)), rates(config, *range(21, 100)), strict=True)
    )


def test_a_run_shorter_than_its_warmup() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=500, decay="cosine")
    assert rates(config, 0, 9, of=10) == pytest.approx([1 / 500, 10 / 500])


def test_matrices_decay_and_vectors_and_embeddings_do_not(tiny_denoiser: Denoiser) -> None:
    optimizer = OptimizerConfig(weight_decay=0.5, beta1=0.8, beta2=0.95).build(tiny_denoiser)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in tiny_denoiser.named_parameters():
        expected = 0.5 if parameter.ndim == 2 and name != "backbone.vocab_embed.embedding" else 0.0
        assert decay.pop(id(parameter)) == expected, name
    assert not decay
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)


def weight_of(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_average_by_hand() -> None:
    model = weight_of(2.0)
    average = ExponentialMovingAverage(model, decay=0.15)
    nn.init.constant_(model.weight, 10.0)
    average.update(model, 0)  # decay min(0.15, 1 / 10): 0.1 * 2 + 0.9 * 10
    assert average.average["weight"].item() == pytest.approx(9.2)
    nn.init.constant_(model.weight, 4.0)
    average.update(model, 1)  # min(0.15, 2 / 11): 0.15 * 9.2 + 0.85 * 4
    assert average.average["weight"].item() == pytest.approx(4.78)
    assert model.weight.item() == 4.0


def test_decay_comes_to_its_limit() -> None:
    """(1 + n) / (10 + n) is above 0.99 from n = 890."""
    model = weight_of(0.0)
    average = ExponentialMovingAverage(model, decay=0.99)
    nn.init.constant_(model.weight, 1.0)
    average.update(model, 888)
    assert average.average["weight"].item() == pytest.approx(1 - 889 / 898, rel=1e-5)
    average.average["weight"].zero_()
    average.update(model, 5000)
    assert average.average["weight"].item() == pytest.approx(0.01, rel=1e-5)


def test_average_is_in_float32_and_starts_as_a_copy() -> None:
    model = weight_of(1.0).bfloat16()
    average = ExponentialMovingAverage(model, decay=0.9999)
    assert average.average["weight"].dtype == torch.float32
    nn.init.constant_(model.weight, 2.0)
    assert average.average["weight"].item() == 1.0
    for _ in range(100):
        average.update(model, 10**6)
    assert average.average["weight"].item() == pytest.approx(2 - 0.9999**100, rel=1e-5)
