"""The training loop: updates, micro-batches, processes, precision, and losses that are not finite."""

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from fewstep.losses.nelbo import NelboObjective
from fewstep.models.language_model import Denoiser
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run_state import Place, saved_place
from tests.training.tiny_run import CONFIG, OBJECTIVE, losses, new_loop, program, records, train


def sgd(model: Denoiser) -> torch.optim.Optimizer:
    """An optimizer that does not amplify rounding, as Adam does where gradients are tiny."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


# --- one update ---


def test_an_update_is_that_of_the_plain_gradient(tmp_path: Path) -> None:
    """One training step of SGD against autograd over the whole batch, clipping and averaging by hand."""
    rate, clip = 0.25, 0.05
    config = replace(CONFIG, training_steps=1)
    options = OptimizerConfig(learning_rate=rate, warmup=0, gradient_clip=clip)
    plain, _ = new_loop(tmp_path / "plain", config)
    batch = OBJECTIVE.prepare(plain.loader.batch(0), 0)
    loss = OBJECTIVE.loss_sum(plain.model, batch) / (6 * 12)
    loss.backward()
    before = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    gradient = {name: p.grad for name, p in plain.model.named_parameters() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt().item()
    assert norm > clip

    trained = train(tmp_path / "loop", config, optimizer_config=options, make_optimizer=sgd)
    (record,) = [row for row in records(tmp_path / "loop") if "loss" in row]
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert record["learning_rate"] == rate
    for name, parameter in trained.model.named_parameters():
        expected = before[name] - rate * clip / norm * gradient[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        averaged = 0.1 * before[name] + 0.9 * expected
        torch.testing.assert_close(trained.average.average[name], averaged, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 6, 100])
def test_micro_batches_make_the_same_updates(micro_batch_size: int, tmp_path: Path) -> None:
    config = replace(CONFIG, training_steps=6)
    options = OptimizerConfig(learning_rate=0.5, warmup=0, gradient_clip=0.3)
    whole = train(tmp_path / "whole", config, optimizer_config=options, make_optimizer=sgd)
    config = replace(config, micro_batch_size=micro_batch_size)
    cut = train(tmp_path / "cut", config, optimizer_config=options, make_optimizer=sgd)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for one, other in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss(uninterrupted_long: Path) -> None:
    found = losses(uninterrupted_long)
    assert len(found) == 120
    assert sum(found[-20:]) / 20 < sum(found[:10]) / 10 - 0.5


def test_records_are_means_over_their_interval(tmp_path: Path, uninterrupted: Path) -> None:
    train(tmp_path, replace(CONFIG, log_every=4, save_every=100, validate_every=100))
    each = losses(uninterrupted)
    expected = [sum(each[i : i + 4]) / 4 for i in range(0, 24, 4)]
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-6)
    assert [row["training_step"] for row in records(tmp_path) if "loss" in row] == [4, 8, 12, 16, 20, 24]


def test_validation_and_saving_are_on_time(uninterrupted: Path) -> None:
    validated = [row["training_step"] for row in records(uninterrupted) if "norm" in row]
    assert validated == [9, 18, 24]
    assert saved_place(uninterrupted) == Place(training_step=24)


def test_rounds_read_on_in_the_data(tmp_path: Path) -> None:
    """The second round begins where the data of the first ended, with learning rates from the start."""
    seen: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(NelboObjective):
        def prepare(self, tokens_BL: torch.Tensor, training_step: int) -> dict[str, torch.Tensor]:
            seen.append(training_step)
            return super().prepare(tokens_BL, training_step)

    loop, _ = new_loop(tmp_path, replace(CONFIG, training_steps=4))
    watching = Watching(**vars(OBJECTIVE))
    loop.run(watching, Place(), "first")
    loop.run(watching, Place(round_index=1), "second")
    assert seen == list(range(8))
    assert saved_place(tmp_path) == Place(training_step=4, round_index=1)
    rates = [row["learning_rate"] for row in records(tmp_path) if "loss" in row]
    assert rates == pytest.approx([3e-3 * k / 5 for k in (1, 2, 3, 4)] * 2)


# --- precision and processes ---


def test_bfloat16_is_near_float32_and_keeps_float32_weights(tmp_path: Path, uninterrupted: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        loop = train(tmp_path, replace(CONFIG, precision="bfloat16", micro_batch_size=4))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    found, expected = losses(tmp_path), losses(uninterrupted)
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected


def test_activation_checkpointing_makes_the_same_updates(tmp_path: Path, uninterrupted: Path) -> None:
    """It recomputes each block once more, and nothing else."""
    loop, place = new_loop(tmp_path, CONFIG)
    loop.model.backbone.activation_checkpointing = True
    calls: list[int] = []
    loop.model.backbone.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    loop.run(OBJECTIVE, place, "test")
    assert losses(tmp_path) == pytest.approx(losses(uninterrupted), rel=1e-5)
    assert len(calls) == 2 * CONFIG.training_steps


def test_two_precisions_in_one_process(tmp_path: Path) -> None:
    train(tmp_path / "one", replace(CONFIG, training_steps=1))
    train(tmp_path / "two", replace(CONFIG, training_steps=1, precision="bfloat16"))
    assert losses(tmp_path / "one") != losses(tmp_path / "two")


def test_two_processes_train_as_one_does(tmp_path: Path, uninterrupted: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    both = [program("short", tmp_path, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    assert losses(tmp_path) == pytest.approx(losses(uninterrupted)[:6], rel=1e-4)
    assert [row["training_step"] for row in records(tmp_path) if "loss" in row] == list(range(1, 7))


# --- losses and gradients that are not finite ---


@dataclass(frozen=True, kw_only=True)
class Breaking(NelboObjective):
    """Gives a loss, or only a gradient, that is not a number from training step 12 on."""

    what: str

    def prepare(self, tokens_BL: torch.Tensor, training_step: int) -> dict[str, torch.Tensor]:
        batch = super().prepare(tokens_BL, training_step)
        return {**batch, "broken": torch.full((len(tokens_BL),), float(training_step >= 12))}

    def loss_sum(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = super().loss_sum(model, batch)
        if not batch["broken"].any():
            return loss
        if self.what == "loss":
            return loss * float("nan")
        return loss + (model.output_head.bias * 0).square().sum().sqrt()  # 0, with a gradient of 0 / 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_run_that_diverges_stops_and_keeps_a_sound_state(what: str, log_every: int, tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1 if log_every == 1 else 5, log_every=log_every)
    loop, place = new_loop(tmp_path, config)
    with pytest.raises(ValueError, match=r"lower optimizer\.learning_rate and resume") as caught:
        loop.run(Breaking(what=what, **vars(OBJECTIVE)), place, "test")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    place = saved_place(tmp_path)
    assert place is not None and place.training_step == (12 if log_every == 1 else 10)
    resumed, _ = new_loop(tmp_path, config)
    assert all(p.isfinite().all() for p in resumed.model.parameters())
    assert all(p.isfinite().all() for p in resumed.average.average.values())


# --- settings ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"training_steps": 0},
        {"batch_size": 0},
        {"micro_batch_size": -1},
        {"log_every": 0},
        {"validate_every": -5},
        {"save_every": 0},
        {"ema_decay": 1.5},
    ],
)
def test_settings_that_cannot_be_met_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"loop.{name} is {wrong[name]}"):
        LoopConfig(**wrong)
