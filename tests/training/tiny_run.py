"""A training run so small that tests can repeat it, here and in processes of their own."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fewstep import seeds
from fewstep.data.loader import TokenLoader
from fewstep.diffusion.schedule import LogLinear
from fewstep.losses.nelbo import NelboObjective
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.training.loop import LoopConfig, Objective, TrainingLoop
from fewstep.training.metrics import MetricsRecord
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig
from fewstep.training.run import place_network
from fewstep.training.run_state import Place, load_state, saved_place

CONFIG = LoopConfig(
    training_steps=24,
    batch_size=6,
    log_every=1,
    validate_every=9,
    save_every=5,
    progress=False,
    ema_decay=0.9,
)
ADAMW = OptimizerConfig(learning_rate=3e-3, warmup=5, weight_decay=0.1)
OBJECTIVE = NelboObjective(mask_token_id=29, schedule=LogLinear(), seed=7)
SHORT = replace(CONFIG, training_steps=6)
LONG = replace(CONFIG, training_steps=120, save_every=7, validate_every=50)


def new_loop(
    directory: Path,
    config: LoopConfig = CONFIG,
    *,
    optimizer_config: OptimizerConfig = ADAMW,
    make_optimizer: Callable[[Denoiser], torch.optim.Optimizer] | None = None,
) -> tuple[TrainingLoop, Place]:
    """Return a loop over a tiny denoiser and the place it starts at: the saved one, if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    accelerator = config.accelerator(directory)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "condition_size": 8}
    model = Denoiser(DenoiserConfig(vocab_size=29, max_position_embeddings=12, **shape))
    model.backbone.initialize(seeds.generator(config.seed))
    place_network(model, accelerator, config)
    tokens = np.arange(4000) ** 2 % 11
    place = saved_place(directory) or Place()
    loop = TrainingLoop(
        accelerator=accelerator,
        model=model,
        average=ExponentialMovingAverage(model, config.ema_decay),
        optimizer=(make_optimizer or optimizer_config.build)(model),
        optimizer_config=optimizer_config,
        config=config,
        loader=TokenLoader(tokens=tokens, context_length=12, batch_size=config.batch_size, seed=config.seed),
        metrics=MetricsRecord(directory, accelerator, resume_at=(place.round_index, place.training_step)),
        run_directory=directory,
        validate=lambda: {"norm": sum(float(p.detach().square().sum()) for p in model.parameters())},
    )
    if place != Place():
        load_state(directory, model, loop.average, loop.optimizer)
    return loop, place


def train(
    directory: Path, config: LoopConfig = CONFIG, *, objective: Objective = OBJECTIVE, **options: Any
) -> TrainingLoop:
    loop, place = new_loop(directory, config, **options)
    loop.run(objective, place, "test")
    return loop


def records(directory: Path) -> list[dict[str, float]]:
    """What was recorded, but for the speed."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def losses(directory: Path) -> list[float]:
    return [row["loss"] for row in records(directory) if "loss" in row]


def state_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the state that one process saved, by name."""
    files = (directory / "state").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def state_bits(directory: Path) -> dict[str, bytes]:
    """Every tensor and number of the saved state, as bytes."""
    bits: dict[str, bytes] = {"place": (directory / "state" / "place.json").read_bytes()}
    bits |= {name: tensor.numpy().tobytes() for name, tensor in state_tensors(directory).items()}
    assert len(bits) == 1 + 30 * 5
    return bits


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    first, second = state_bits(one), state_bits(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def program(mode: str, directory: Path, **variables: str) -> ForkServerProcess:
    """Start a process of its own, which shares no memory with this one, that trains in `directory`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fewstep.training.train"])  # once for all, which takes seconds
    process = context.Process(target=train_in_a_process, args=(mode, directory, variables))
    process.start()
    return process


def train_in_a_process(mode: str, directory: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    if mode.startswith("kill"):
        kill_at_the_second_save(mode)
    train(directory, {"long": LONG, "short": SHORT}.get(mode, CONFIG))


def kill_at_the_second_save(mode: str) -> None:
    """Let this process kill itself in the middle of its second save."""
    calls = 0
    cut = "fsync" if mode == "kill while writing" else "rename"
    owner: Any = os if cut == "fsync" else Path
    original = getattr(owner, cut)

    def counting(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        # The first save syncs three files as they are written and four in the end, and renames once; the
        # second renames the old one away first.
        if calls == (9 if cut == "fsync" else 3):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, cut, counting)
