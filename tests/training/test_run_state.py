"""The saved state: all of it comes back bit by bit, damage is refused, a failed save loses nothing."""

import os
import resource
from pathlib import Path

import pytest
import torch

from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig
from fewstep.training.run_state import Place, load_state, load_weights, save_state, saved_place

PLACE = Place(training_step=3, round_index=2, teacher="abc", settings="def")


class Run:
    """A model, its average and its optimizer after `updates` updates."""

    def __init__(self, updates: int, width: int = 16) -> None:
        config = DenoiserConfig(
            vocab_size=29, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, condition_size=8
        )
        self.model = Denoiser(config)
        self.average = ExponentialMovingAverage(self.model, 0.9)
        self.optimizer = OptimizerConfig(learning_rate=1e-2).build(self.model)
        for update in range(updates):
            self.update(update)

    def update(self, number: int) -> None:
        tokens = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(number))
        self.model(tokens).logits.square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, number)

    def save(self, directory: Path, place: Place = PLACE) -> None:
        save_state(directory, place, self.model, self.average, self.optimizer)

    def load(self, directory: Path) -> None:
        load_state(directory, self.model, self.average, self.optimizer)

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"weight {name}": p.detach() for name, p in self.model.named_parameters()}
        found |= {f"average {name}": tensor for name, tensor in self.average.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{key} {index}": value for key, value in moments.items()}
        return found


def assert_equal(one: Run, other: Run) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_everything_comes_back_and_goes_on_alike(tmp_path: Path) -> None:
    run, again = Run(updates=4), Run(updates=1)
    run.save(tmp_path)
    assert saved_place(tmp_path) == PLACE
    again.load(tmp_path)
    assert_equal(run, again)
    run.update(4)
    again.update(4)
    assert_equal(run, again)


def test_a_new_state_takes_the_place_of_the_old(tmp_path: Path) -> None:
    run, again = Run(updates=1), Run(updates=0)
    run.save(tmp_path, Place(training_step=1))
    run.update(1)
    run.save(tmp_path, Place(training_step=2))
    assert saved_place(tmp_path) == Place(training_step=2)
    again.load(tmp_path)
    assert_equal(run, again)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_state_is_no_place(tmp_path: Path) -> None:
    assert saved_place(tmp_path) is None
    assert saved_place(tmp_path / "nowhere") is None


def test_state_that_a_kill_moved_away_is_found(tmp_path: Path) -> None:
    run, again = Run(updates=1), Run(updates=0)
    run.save(tmp_path)
    (tmp_path / "state").rename(tmp_path / "state.previous")
    assert saved_place(tmp_path) == PLACE
    again.load(tmp_path)
    assert_equal(run, again)


@pytest.mark.parametrize("limit", [2_000, 30_000, 60_000])
def test_full_disk_keeps_the_state_before(limit: int, tmp_path: Path) -> None:
    """Writes fail beyond a limit on the size of files, as they do on a full disk."""
    before = Run(updates=2)
    before.save(tmp_path)
    after = Run(updates=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises((OSError, ValueError)) as caught:
            after.save(tmp_path, Place(training_step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert saved_place(tmp_path) == PLACE
    again = Run(updates=0)
    again.load(tmp_path)
    assert_equal(before, again)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_error_while_saving_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Run(updates=2)
    before.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Run(updates=3).save(tmp_path, Place(training_step=4))
    assert saved_place(tmp_path) == PLACE
    again = Run(updates=0)
    again.load(tmp_path)
    assert_equal(before, again)


@pytest.mark.parametrize("file", [0, 1, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_state_is_refused(file: int, share: float, tmp_path: Path) -> None:
    Run(updates=1).save(tmp_path)
    path = sorted((tmp_path / "state").glob("*.safetensors"))[file]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Run(updates=0).load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ["", '{"training_step": 3', '{"training_stop": 3}', "[]"])
def test_damaged_place_is_refused(content: str, tmp_path: Path) -> None:
    Run(updates=1).save(tmp_path)
    (tmp_path / "state" / "place.json").write_text(content)
    with pytest.raises(ValueError, match=r"place\.json is damaged") as caught:
        saved_place(tmp_path)
    assert "\n" not in str(caught.value)


def test_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    Run(updates=1).save(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        Run(updates=0, width=20).load(tmp_path)


def test_weights_are_copied_by_name() -> None:
    one, other = Run(updates=2).model, Run(updates=0).model
    weights = dict(reversed([(name, p.detach()) for name, p in one.named_parameters()]))
    load_weights(other, weights)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.data_ptr() != weights[name].data_ptr()
