"""`fewstep train`: a masked diffusion teacher or the autoregressive baseline, from text to checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from fewstep import seeds
from fewstep.data.tokenizer import load_tokenizer, vocab_size
from fewstep.diffusion.schedule import SCHEDULES, ScheduleName
from fewstep.losses.nelbo import DenoiserNetwork, NelboObjective
from fewstep.losses.next_token import NextTokenObjective
from fewstep.models.checkpoint import load_model, resolve, save_checkpoint
from fewstep.models.config import SHAPES, AutoregressiveConfig, DenoiserConfig, ShapeName
from fewstep.models.language_model import (
    AutoregressiveLM,
    Denoiser,
    LanguageModel,
    denoiser_from_autoregressive,
)
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import DataConfig, place_of_run, training_loop, validation
from fewstep.training.settings import save_settings
from fewstep.training.sharding import whole

FINAL_MODEL = "model"


def train(
    *,
    output: str,
    tokenizer: str,
    kind: Literal["diffusion", "autoregressive"] = "diffusion",
    init_from: str | None = None,
    shape: ShapeName | None = None,
    schedule: ScheduleName = "log-linear",
    data: DataConfig = DataConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(),
    loop: LoopConfig = LoopConfig(),
) -> Path:
    """Train a masked diffusion teacher or an autoregressive baseline on text.

    The same command continues a run that was stopped. The result is the checkpoint `output`/model,
    with the average of the weights.

    Args:
        output: Directory of the run.
        tokenizer: Directory or hub name of the tokenizer.
        kind: What to train.
        init_from: Checkpoint to start from. A denoiser may start from an autoregressive model.
        shape: Size of the network, "small" by default. One that starts from `init_from` has its size.
        schedule: Masking schedule of a denoiser.
        data: Text to train and validate on.
        optimizer: AdamW and its learning rate.
        loop: Length, batch, precision, reports and saved states.

    Returns:
        The directory of the final checkpoint.

    Raises:
        ValueError: if a setting cannot be met, or the loss is no longer finite.
    """
    settings = {
        "kind": kind, "init_from": init_from, "shape": shape, "schedule": schedule,
        "data": asdict(data), "optimizer": asdict(optimizer), "loop": asdict(loop),
    }  # fmt: skip
    run_directory = Path(output)
    accelerator = loop.accelerator(run_directory, {"output": output, "tokenizer": tokenizer, **settings})
    text_tokenizer = load_tokenizer(resolve(tokenizer))
    place = place_of_run(run_directory, settings, text_tokenizer)
    model = initial_model(kind, init_from, shape, data.context_length, vocab_size(text_tokenizer), loop.seed)
    corpus = data.tokenize(text_tokenizer, learn_fill=kind == "diffusion")
    held_out = data.held_out(corpus)
    training = training_loop(
        accelerator=accelerator,
        run_directory=run_directory,
        place=place,
        model=model,
        corpus=corpus,
        context_length=data.context_length,
        optimizer=optimizer,
        loop=loop,
        validate=lambda average: validation(model, average, held_out, SCHEDULES[schedule]),
    )
    if accelerator.is_main_process:
        save_settings(run_directory, {"output": output, "tokenizer": tokenizer, **settings})
    if isinstance(model, DenoiserNetwork):
        training.run(
            NelboObjective(mask_token_id=model.mask_token_id, schedule=SCHEDULES[schedule], seed=loop.seed),
            place,
            kind,
        )
    else:
        training.run(NextTokenObjective(), place, kind)
    manifest = {
        "kind": kind,
        "schedule": schedule,
        "settings": settings,
        "tokens_seen": loop.training_steps * loop.batch_size * data.context_length,
        **training.validate(),
    }
    weights = whole(training.average.average, wanted=accelerator.is_main_process)
    if accelerator.is_main_process:
        save_checkpoint(run_directory / FINAL_MODEL, model, text_tokenizer, manifest, state_dict=weights)
    accelerator.wait_for_everyone()
    return run_directory / FINAL_MODEL


def initial_model(
    kind: str, init_from: str | None, shape: str | None, context_length: int, num_tokens: int, seed: int
) -> LanguageModel:
    """Return the network to train: fresh, or with the weights of `init_from`.

    Raises:
        ValueError: if `init_from` has another vocabulary, is a denoiser where `kind` is not, or comes
            with a shape.
    """
    if init_from is not None and shape is not None:
        raise ValueError(f"shape is that of {init_from}, which the network starts from; leave shape out")
    if init_from is None:
        config_class = DenoiserConfig if kind == "diffusion" else AutoregressiveConfig
        config = config_class(
            vocab_size=num_tokens, max_position_embeddings=context_length, **SHAPES[shape or "small"]
        )
        model = (Denoiser if kind == "diffusion" else AutoregressiveLM)(config)
        model.backbone.initialize(seeds.generator(seed))
        return model
    model = load_model(init_from)
    model.max_length = context_length
    if model.vocab_size != num_tokens:
        raise ValueError(
            f"{init_from} was trained with {model.vocab_size} tokens and the tokenizer has {num_tokens}; "
            "use the tokenizer saved with it"
        )
    if kind == "diffusion" and isinstance(model, AutoregressiveLM):
        return denoiser_from_autoregressive(model)
    if kind == "autoregressive" and isinstance(model, DenoiserNetwork):
        raise ValueError(f"{init_from} is a denoiser; an autoregressive model cannot start from one")
    return model
