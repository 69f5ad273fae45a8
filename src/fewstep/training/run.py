"""What every run sets up: its data, its directory, its place to resume at, and its loop."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.loader import TokenLoader, validation_batch
from fewstep.data.packing import TokenizedCorpus, tokenize_corpus, tokenizer_hash
from fewstep.diffusion.schedule import Schedule
from fewstep.evaluation.likelihood import likelihood
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.training.loop import LoopConfig, TrainingLoop
from fewstep.training.metrics import MetricsRecord
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig
from fewstep.training.run_state import Place, load_state, load_weights, saved_place

VALIDATION_SEED = 1
SETTINGS_WITHOUT_EFFECT = (
    "log_every", "validate_every", "save_every", "tracker", "progress", "micro_batch_size",
    "activation_checkpointing",
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
    validation_contexts: int = 128
    """Contexts that a validation reads."""
    context_length: int = 256
    """L, the tokens of a sequence."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction is {self.validation_fraction}; it must be between 0 and 1"
            )
        if self.context_length < 1 or self.validation_contexts < 1:
            raise ValueError("data.context_length and data.validation_contexts must be at least 1")

    def tokenize(self, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
        """Return the training and validation tokens."""
        return tokenize_corpus(
            self.corpus,
            tokenizer,
            validation_corpus=self.validation_corpus,
            validation_fraction=self.validation_fraction,
            context_length=self.context_length,
        )

    def held_out(self, corpus: TokenizedCorpus) -> Tensor:
        """Return the contexts that a validation reads, (contexts, L)."""
        return validation_batch(
            corpus.validation, context_length=self.context_length, max_contexts=self.validation_contexts
        )


def place_of_run(run_directory: Path, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Place:
    """Return where the run in `run_directory` stands: its saved place, or the beginning.

    Raises:
        ValueError: if it was started with settings that give other weights.
    """
    loop = {key: value for key, value in settings["loop"].items() if key not in SETTINGS_WITHOUT_EFFECT}
    text = json.dumps([{**settings, "loop": loop}, tokenizer_hash(tokenizer)], sort_keys=True)
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
    run_directory: Path,
    place: Place,
    model: Denoiser | AutoregressiveLM,
    corpus: TokenizedCorpus,
    context_length: int,
    optimizer: OptimizerConfig,
    loop: LoopConfig,
    validate: Callable[[ExponentialMovingAverage], dict[str, float]],
) -> TrainingLoop:
    """Return the loop of a run, standing at `place` with the state that was saved there."""
    resuming = saved_place(run_directory) is not None
    run_directory.mkdir(parents=True, exist_ok=True)
    accelerator = loop.accelerator(run_directory)
    model.to(accelerator.device)
    model.backbone.activation_checkpointing = loop.activation_checkpointing
    average = ExponentialMovingAverage(model, loop.ema_decay)
    training = TrainingLoop(
        accelerator=accelerator,
        model=model,
        average=average,
        optimizer=optimizer.build(model),
        optimizer_config=optimizer,
        config=loop,
        loader=TokenLoader(
            tokens=corpus.training,
            context_length=context_length,
            batch_size=loop.batch_size,
            seed=loop.seed,
        ),
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


def validation(
    model: Denoiser | AutoregressiveLM, average: ExponentialMovingAverage, tokens: Tensor, schedule: Schedule
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
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    load_weights(model, average.average)
    try:
        yield
    finally:
        load_weights(model, weights)
