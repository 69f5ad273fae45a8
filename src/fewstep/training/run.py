"""What every run sets up: its data, its directory, its place to resume at, and its loop."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.encoding import tokenizer_hash
from fewstep.data.packing import TokenizedCorpus, tokenize_corpus
from fewstep.diffusion.schedule import Schedule
from fewstep.evaluation.likelihood import likelihood
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.models.language_model import LanguageModel
from fewstep.training.loop import LoopConfig, TrainingLoop
from fewstep.training.metrics import MetricsRecord
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig, trained
from fewstep.training.run_state import Place, load_state, load_weights, saved_place
from fewstep.training.sharding import keep_in_step, reshard, shard

VALIDATION_SEED = 1
SETTINGS_WITHOUT_EFFECT = (
    "log_every", "validate_every", "save_every", "tracker", "progress", "micro_batch_size",
    "activation_checkpointing", "sharding",
)  # fmt: skip
"""Settings of the loop that do not decide the weights (but for rounding)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Text to train on, text to validate on, and how it is cut."""

    corpus: Corpus = field(default_factory=Corpus)
    """Documents to train on."""
    validation_corpus: Corpus | None = None
    """Documents to validate on; by default some of `corpus` are held out."""
    validation_fraction: float = 0.05
    """Share of `corpus` held out where there is no `validation_corpus`."""
    held_out_documents: int = 0
    """Documents held out in place of that share: the last of `corpus`, or the first of a streamed one.
    The literature holds out the last 100,000 of OpenWebText."""
    num_proc: int = 1
    """Processes that tokenize."""
    validation_contexts: int = 128
    """Contexts that a validation reads."""
    context_length: int = 256
    """L, the tokens of a sequence."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction is {self.validation_fraction}; it must be between 0 and 1"
            )
        if self.num_proc < 1 or self.held_out_documents < 0:
            raise ValueError("data.num_proc must be at least 1 and data.held_out_documents at least 0")
        if self.context_length < 1 or self.validation_contexts < 1:
            raise ValueError("data.context_length and data.validation_contexts must be at least 1")

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, *, learn_fill: bool = True) -> TokenizedCorpus:
        """Return the training and validation tokens; for `learn_fill`, see `Pairs`."""
        return tokenize_corpus(
            self.corpus,
            tokenizer,
            validation_corpus=self.validation_corpus,
            validation_fraction=self.validation_fraction,
            held_out_documents=self.held_out_documents,
            context_length=self.context_length,
            num_proc=self.num_proc,
            learn_fill=learn_fill,
        )

    def held_out(self, corpus: TokenizedCorpus) -> Tensor:
        """Return the contexts that a validation reads, (contexts, L)."""
        return corpus.held_out(context_length=self.context_length, max_contexts=self.validation_contexts)


def place_of_run(run_directory: Path, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Place:
    """Return where the run in `run_directory` stands: its saved place, or the beginning.

    Raises:
        ValueError: if it was started with settings that give other weights.
    """
    loop = {key: value for key, value in settings["loop"].items() if key not in SETTINGS_WITHOUT_EFFECT}
    data = {key: value for key, value in settings["data"].items() if key != "num_proc"}
    text = json.dumps([{**settings, "loop": loop, "data": data}, tokenizer_hash(tokenizer)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    place = saved_place(run_directory)
    if place is None:
        return Place(settings=digest)
    if place.settings != digest:
        raise ValueError(
            f"{run_directory} holds a run with other settings; repeat them to continue it, "
            "or choose another output"
        )
    return place


def training_loop(
    *,
    accelerator: Accelerator,
    run_directory: Path,
    place: Place,
    model: LanguageModel,
    corpus: TokenizedCorpus,
    context_length: int,
    optimizer: OptimizerConfig,
    loop: LoopConfig,
    validate: Callable[[ExponentialMovingAverage], dict[str, float]],
) -> TrainingLoop:
    """Return the loop of a run, standing at `place` with the state that was saved there."""
    resuming = saved_place(run_directory) is not None
    run_directory.mkdir(parents=True, exist_ok=True)
    if loop.tracker != "none":
        accelerator.init_trackers("fewstep")
    place_network(model, accelerator, loop)
    model.recompute_activations(loop.activation_checkpointing)
    average = ExponentialMovingAverage(model, loop.ema_decay)
    training = TrainingLoop(
        accelerator=accelerator,
        model=model,
        average=average,
        optimizer=optimizer.build(model),
        optimizer_config=optimizer,
        config=loop,
        loader=corpus.loader(context_length=context_length, batch_size=loop.batch_size, seed=loop.seed),
        metrics=MetricsRecord(
            run_directory,
            accelerator,
            resume_at=(place.round_index, place.training_step) if resuming else None,
        ),
        run_directory=run_directory,
        validate=lambda: validate(average),
    )
    if resuming:
        load_state(run_directory, model, average, training.optimizer)
    return training


def place_network(network: LanguageModel, accelerator: Accelerator, loop: LoopConfig) -> None:
    """Move `network`, or this process's part of it, to the device, in place."""
    if loop.sharding == "full":
        shard(network, accelerator.device.type)
        return
    network.to(accelerator.device)
    if accelerator.num_processes > 1 and isinstance(network, DenoiserNetwork):
        keep_in_step(network)


def validation(
    model: LanguageModel, average: ExponentialMovingAverage, tokens: Tensor, schedule: Schedule
) -> dict[str, float]:
    """Return the validation perplexity of the averaged weights, with its standard error."""
    with averaged_weights(model, average):
        measured = likelihood(model, tokens, schedule=schedule, seed=VALIDATION_SEED)
    return {
        "validation_nats_per_token": measured.nats_per_token,
        "validation_perplexity": measured.perplexity,
        "validation_perplexity_standard_error": measured.perplexity_standard_error,
    }


@contextmanager
def averaged_weights(model: nn.Module, average: ExponentialMovingAverage) -> Iterator[None]:
    """Give `model` the averaged weights while the block runs."""
    reshard(model)
    weights = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    load_weights(model, average.average)
    try:
        yield
    finally:
        reshard(model)
        load_weights(model, weights)
