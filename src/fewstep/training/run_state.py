"""Everything a run needs to go on after a kill: weights, optimizer, average, and its place.

The order of the data and all random numbers are functions of the seed and the training step, so
the place is two integers. The files are replaced as a whole; a kill while saving leaves the last.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.models.checkpoint import recover, replacing
from fewstep.training.optimizer import ExponentialMovingAverage

DIRECTORY = "state"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands."""

    training_step: int = 0
    """Updates made in this round."""
    round_index: int = 0
    """The round of distillation; 0 in training."""
    teacher: str = ""
    """Hash of the round's teacher weights; empty in training."""
    settings: str = ""
    """Hash of the settings that must not change within a run."""


def save_state(
    run_directory: Path,
    place: Place,
    model: nn.Module,
    average: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Save the state of a run in `run_directory`, in place of the one before."""
    with replacing(run_directory / DIRECTORY) as directory:
        save_file(dict(model.named_parameters()), directory / "weights.safetensors")
        save_file(average.average, directory / "average.safetensors")
        torch.save(optimizer.state_dict(), directory / "optimizer.pt")
        (directory / "place.json").write_text(json.dumps(asdict(place)))


def saved_place(run_directory: Path) -> Place | None:
    """Return the place of the saved state, or None if there is none.

    Raises:
        ValueError: if the state cannot be read.
    """
    recover(run_directory / DIRECTORY)
    path = run_directory / DIRECTORY / "place.json"
    if not path.exists():
        return None
    try:
        return Place(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); start again in another directory") from error


def load_state(
    run_directory: Path,
    model: nn.Module,
    average: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Load the saved state into `model`, `average` and `optimizer`.

    Raises:
        ValueError: if a file is truncated or of another model.
    """
    directory = run_directory / DIRECTORY
    try:
        load_weights(model, load_file(directory / "weights.safetensors"))
        for name, tensor in load_file(directory / "average.safetensors").items():
            average.average[name].copy_(tensor)
        optimizer.load_state_dict(torch.load(directory / "optimizer.pt", weights_only=True))
    except Exception as error:  # damaged files raise many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the saved state in {directory} cannot be read ({reason}); start again in another directory"
        ) from error


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights` into the parameters of `model` by name."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
