"""Everything a run needs to go on after a kill: weights, optimizer, average, and its place.

The order of the data and all random numbers are functions of the seed and the training step, so
the place is two integers. The tensors are safetensors files of `torch.distributed.checkpoint`: each
process writes its share, one process all, and any number of processes reads them. The files are
replaced as a whole; a kill while saving leaves the last.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed_checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from fewstep.models.checkpoint import recover, replacing, unfinished
from fewstep.training.optimizer import ExponentialMovingAverage, make_moments, trained

DIRECTORY = "state"
PARTS = ("weights", "average", "optimizer")
"""Each has files of its own, since a process holds a file in memory while it writes it."""


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
    """Save the state of a run in `run_directory`, in place of the one before; all processes take part."""
    directory = run_directory / DIRECTORY
    tensors = state_tensors(model, average, optimizer)
    files = {name: 1 + PARTS.index(name.split(".", 1)[0]) for name in tensors}
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    with replacing(directory) if is_first else nullcontext(unfinished(directory)) as target:
        wait_for_all()  # the directory is made
        with single_errors():
            distributed_checkpoint.save(
                tensors, storage_writer=HuggingFaceStorageWriter(str(target), files, save_distributed=True)
            )
        if is_first:
            (target / "place.json").write_text(json.dumps(asdict(place)))
    wait_for_all()


def state_tensors(
    model: nn.Module, average: ExponentialMovingAverage, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return all tensors of a run by name, the very ones that it works on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trained(model).items()}
    tensors = {f"weights.{name}": parameter.detach() for parameter, name in names.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.average.items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": moment for key, moment in moments.items()}
    return tensors


def saved_place(run_directory: Path) -> Place | None:
    """Return the place of the saved state, or None if there is none.

    Raises:
        ValueError: if the state cannot be read.
    """
    if not dist.is_initialized() or dist.get_rank() == 0:
        recover(run_directory / DIRECTORY)
    wait_for_all()
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
        make_moments(optimizer)
        with single_errors():
            distributed_checkpoint.load(
                state_tensors(model, average, optimizer),
                storage_reader=HuggingFaceStorageReader(str(directory)),
            )
    except Exception as error:  # damaged files raise many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the saved state in {directory} cannot be read ({reason}); start again in another directory"
        ) from error


@contextmanager
def single_errors() -> Iterator[None]:
    """Raise, for what went wrong in some processes, the first one's error; say nothing of being alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error


def wait_for_all() -> None:
    """Return once every process of the run is here."""
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights` into the trained parameters of `model` by name."""
    for name, parameter in trained(model).items():
        parameter.copy_(weights[name])
