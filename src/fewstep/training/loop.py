"""The training loop: prepared batches to updates, reports and saved states, on Accelerate.

A global batch is prepared (drawn, corrupted) as a whole and then cut over processes and
micro-batches, so the same seed gives the same training however many of either there are.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.data.loader import Loader
from fewstep.models.language_model import LanguageModel
from fewstep.training.metrics import MetricsRecord, ProgressBar
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig
from fewstep.training.processes import (
    check_launcher,
    check_same,
    losses_of_processes,
    several_without_gpu,
)
from fewstep.training.run_state import Place, save_state
from fewstep.training.sharding import whole_number


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how to train, what to report, and when to save."""

    training_steps: int = 10_000
    """Updates (of each round, when distilling)."""
    batch_size: int = 128
    """Sequences of one update, over all processes and micro-batches."""
    micro_batch_size: int = 0
    """Sequences of one forward and backward pass of one process; 0 for all of its share."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's matrix products; weights and losses are float32."""
    sharding: Literal["none", "full"] = "none"
    """Whether each of several processes holds all weights, gradients, moments and averages ("none":
    DDP), or its part of them, and of the teacher's ("full": FSDP2)."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: far less memory, about a third more time."""
    ema_decay: float = 0.9999
    """Decay of the average of the weights."""
    log_every: int = 10
    """Training steps between records of the loss."""
    validate_every: int = 500
    """Training steps between validations."""
    save_every: int = 500
    """Training steps between saved states."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where metrics go besides metrics.jsonl."""
    progress: bool = True
    """Show a progress bar."""
    seed: int = 0
    """Of the weights, the order of the data, and all that is drawn."""

    def __post_init__(self) -> None:
        for name in ("training_steps", "batch_size", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} is {getattr(self, name)}; it must be at least 1")
        if self.micro_batch_size < 0:
            raise ValueError(f"loop.micro_batch_size is {self.micro_batch_size}; it must be at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"loop.ema_decay is {self.ema_decay}; it must be at least 0 and below 1")

    def accelerator(self, run_directory: Path, settings: Mapping[str, Any] = {}) -> Accelerator:
        """Return the Accelerator of a run, which joins the processes; nothing is written yet.

        Raises:
            ValueError: if `settings` differ between processes, or do not suit their number or launcher.
        """
        check_launcher(self.precision)
        accelerator = Accelerator(
            cpu=several_without_gpu(),
            mixed_precision="no",  # `update` casts: Accelerate allows one precision in a process
            log_with=None if self.tracker == "none" else self.tracker,
            project_dir=run_directory,
        )
        check_same(settings)
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"loop.batch_size {self.batch_size} is no multiple of the {accelerator.num_processes} "
                "processes; choose one that is"
            )
        if self.sharding == "full" and accelerator.num_processes == 1:
            raise ValueError(
                "loop.sharding is full and there is one process; start several with accelerate launch or "
                "torchrun, or set it to none"
            )
        return accelerator


class Objective(Protocol):
    """A loss that can be trained."""

    def prepare(self, tokens_BL: Tensor, training_step: int) -> dict[str, Tensor]: ...
    def normalizer(self, batch: dict[str, Tensor]) -> int: ...
    def loss_sum(self, model: Any, batch: dict[str, Tensor]) -> Tensor: ...


class _LossModule(nn.Module):
    """A model and its objective as one module, so that wrappers such as DDP see its forward pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.objective.loss_sum(self.model, batch)


@dataclass(kw_only=True)
class TrainingLoop:
    """Trains `model` on `loader` from `place` to the end of its round.

    `validate` returns numbers to report beside the loss. Warm-up and decay of the learning rate begin
    anew in each round, and so does that of the average, unless `schedule_spans_rounds`.
    """

    accelerator: Accelerator
    model: LanguageModel
    average: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    optimizer_config: OptimizerConfig
    config: LoopConfig
    loader: Loader
    metrics: MetricsRecord
    run_directory: Path
    validate: Callable[[], dict[str, float]]
    schedule_spans_rounds: bool = False

    def run(self, objective: Objective, place: Place, name: str) -> None:
        """Make the updates that are left of the round at `place`.

        Raises:
            ValueError: if the loss is no longer finite; the last saved state remains.
        """
        with losses_of_processes(self.accelerator.num_processes):
            self._run(self.wrapped(objective), objective, place, name)

    def wrapped(self, objective: Objective) -> nn.Module:
        """Return the loss as a module, its gradients averaged over processes in the backward pass."""
        module = _LossModule(self.model, objective)
        if self.config.sharding == "none":  # otherwise the model's own hooks do that
            module = self.accelerator.prepare(module)
        return module.train()

    def _run(self, module: nn.Module, objective: Objective, place: Place, name: str) -> None:
        config = self.config
        interval = _Interval()
        first_batch = place.round_index * config.training_steps
        with ProgressBar(
            name,
            config.training_steps,
            place.training_step,
            shown=config.progress and self.accelerator.is_main_process,
        ) as bar:
            for training_step in range(place.training_step, config.training_steps):
                tokens = self.loader.batch(first_batch + training_step).to(self.accelerator.device)
                batch = objective.prepare(tokens, first_batch + training_step)
                updates = self.updates_before(place)
                rate = self.optimizer_config.learning_rate_at(updates, config.training_steps)
                loss, gradient_norm = self.update(module, objective, batch, rate)
                self.average.update(self.model, updates)
                interval.add(loss, gradient_norm, tokens.numel())
                done = training_step + 1
                place = Place(**{**vars(place), "training_step": done})
                due = {
                    every
                    for every in (config.log_every, config.validate_every, config.save_every)
                    if done % every == 0 or done == config.training_steps
                }
                if due:
                    numbers = interval.means(done, self.run_directory)
                    interval = _Interval()
                    self.metrics.add(place.round_index, done, {**numbers, "learning_rate": rate})
                    bar.update(
                        done, f"loss {numbers['loss']:.4f}  {numbers['tokens_per_second']:.0f} tokens/s"
                    )
                if config.validate_every in due:
                    self.metrics.add(place.round_index, done, self.validate())
                if config.save_every in due:
                    self.save(place)
                if due:
                    interval.started = time.monotonic()

    def updates_before(self, place: Place) -> int:
        """Return the updates that warm-up, decay and average count as made."""
        skipped = place.round_index * self.config.training_steps if self.schedule_spans_rounds else 0
        return skipped + place.training_step

    def update(
        self,
        module: nn.Module,
        objective: Objective,
        batch: dict[str, Tensor],
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Make one update; return the loss of the global batch and the norm of its gradient."""
        accelerator, config = self.accelerator, self.config
        share = config.batch_size // accelerator.num_processes
        begin = accelerator.process_index * share
        micro_batch_size = config.micro_batch_size or share
        parts = range(begin, begin + share, micro_batch_size)
        normalizer = max(objective.normalizer(batch), 1)
        total = torch.zeros((), device=accelerator.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for start in parts:
            part = {
                key: value[start : min(start + micro_batch_size, begin + share)]
                for key, value in batch.items()
            }
            accumulating = start != parts[-1]
            with accelerator.no_sync(module) if accumulating else nullcontext():
                with torch.autocast(
                    accelerator.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
                ):
                    loss = module(part) / normalizer
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.optimizer_config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cast(Tensor, accelerator.reduce(total)), whole_number(cast(Tensor, norm))

    def save(self, place: Place) -> None:
        """Save the state of the run at `place`."""
        save_state(self.run_directory, place, self.model, self.average, self.optimizer)


class _Interval:
    """Sums of what happened since the last report."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.norm_sum: Tensor | float = 0.0
        self.updates = self.tokens = 0
        self.started = time.monotonic()

    def add(self, loss: Tensor, gradient_norm: Tensor, tokens: int) -> None:
        self.loss_sum = self.loss_sum + loss
        self.norm_sum = self.norm_sum + gradient_norm
        self.updates += 1
        self.tokens += tokens

    def means(self, training_step: int, run_directory: Path) -> dict[str, float]:
        """Return the means over the updates added.

        Raises:
            ValueError: if the loss was not finite.
        """
        loss = float(self.loss_sum) / self.updates
        gradient_norm = float(self.norm_sum) / self.updates
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise ValueError(
                f"the loss is {loss} and the norm of its gradient {gradient_norm} after {training_step} "
                f"training steps; lower optimizer.learning_rate and resume from the state saved in "
                f"{run_directory}"
            )
        return {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "tokens_per_second": self.tokens / (time.monotonic() - self.started),
        }
