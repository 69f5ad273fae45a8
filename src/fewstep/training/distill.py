"""`fewstep distill`: rounds of Self-Distillation Through Time, from a teacher to few-step students."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.data.tokenizer import load_tokenizer
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective, DivergenceProbe
from fewstep.distillation.rounds import RoundsConfig
from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.checkpoint import load_model, read_manifest, resolve, save_checkpoint, weights_hash
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.models.lora import (
    LoraConfig,
    WithoutAdapters,
    adapters,
    attach,
    load_frozen,
    merged,
    restart,
)
from fewstep.training.loop import LoopConfig, TrainingLoop
from fewstep.training.optimizer import ExponentialMovingAverage, OptimizerConfig
from fewstep.training.run import (
    DataConfig,
    averaged_weights,
    place_network,
    place_of_run,
    training_loop,
    validation,
)
from fewstep.training.run_state import Place
from fewstep.training.settings import save_settings
from fewstep.training.sharding import whole

PROBE_SEED = 2
ADAPTERS = 3
"""Place in the path of seeds, so that adapters draw apart from the rest."""
PROBE_CONTEXTS = 32


def distill(
    *,
    output: str,
    teacher: str,
    student: str | None = None,
    rounds: RoundsConfig = RoundsConfig(),
    lora: LoraConfig = LoraConfig(),
    data: DataConfig = DataConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=6e-5),
    loop: LoopConfig = LoopConfig(),
) -> Path:
    """Distil a masked diffusion teacher into students that need ever fewer steps.

    The same command continues a run that was stopped, in the middle of any round. Every round's
    student is saved as `output`/round_R, with a manifest; the defaults are the paper's.

    Args:
        output: Directory of the run.
        teacher: Checkpoint of the first teacher.
        student: Checkpoint that the first student starts from, of the teacher's shape; by default
            the teacher itself.
        rounds: Steps of teacher and student, number of rounds, divergence.
        lora: Rank of the adapters to train in place of all weights: the teacher is then the student
            with its adapters off, and rounds merge them. Needs peft.
        data: Text to distil on and to validate on.
        optimizer: AdamW and its learning rate.
        loop: Training steps of a round, batch, precision, reports and saved states.

    Returns:
        The directory of the last student.

    Raises:
        ValueError: if a setting cannot be met, or the loss is no longer finite.
    """
    settings = {
        "teacher": teacher, "student": student, "rounds": asdict(rounds),
        "data": asdict(data), "optimizer": asdict(optimizer), "loop": asdict(loop),
    }  # fmt: skip
    if lora.rank:
        check_lora(student, rounds, loop)
        settings["lora"] = asdict(lora)
    run_directory = Path(output)
    accelerator = loop.accelerator(run_directory, {"output": output, **settings})
    model = load_denoiser(student or teacher)
    check_same_shape(model, load_denoiser(teacher), student or teacher, teacher)
    if data.context_length > model.max_length:
        raise ValueError(
            f"data.context_length is {data.context_length} and the context of {student or teacher} "
            f"{model.max_length}; lower it, or train the teacher on longer texts first"
        )
    if lora.rank:
        attach(model, lora)
    tokenizer = load_tokenizer(resolve(teacher))
    corpus = data.tokenize(tokenizer)
    place = place_of_run(run_directory, settings, tokenizer)
    held_out = data.held_out(corpus)
    schedule = read_manifest(teacher).get("schedule", "log-linear")
    probe: DivergenceProbe

    def measure(average: ExponentialMovingAverage) -> dict[str, float]:
        with averaged_weights(model, average):
            divergence = probe.divergence(model)
        return {"probe_divergence": divergence, **validation(model, average, held_out, SCHEDULES[schedule])}

    training = training_loop(
        accelerator=accelerator,
        run_directory=run_directory,
        place=place,
        model=model,
        corpus=corpus,
        context_length=data.context_length,
        optimizer=optimizer,
        loop=loop,
        validate=measure,
    )
    if accelerator.is_main_process:
        save_settings(run_directory, {"output": output, **settings})
    training.schedule_spans_rounds = rounds.optimizer_state == "keep"
    for round_index in range(place.round_index, rounds.num_rounds):
        teacher_path = teacher if round_index == 0 else str(round_directory(run_directory, round_index - 1))
        place = begin_round(training, place, round_index, teacher_path, rounds)
        if lora.rank:
            begin_adapters(training, place, teacher_path)
            frozen: Any = WithoutAdapters(model)
        else:
            frozen = load_denoiser(teacher_path).folded()
            place_network(frozen, accelerator, loop)
        objective = DistillationObjective(
            teacher=frozen,
            delta=rounds.delta(round_index),
            teacher_steps=rounds.teacher_steps,
            teacher_rollouts=rounds.teacher_rollouts,
            divergence=rounds.divergence,
            schedule=SCHEDULES[schedule],
            seed=loop.seed,
        )
        probe = DivergenceProbe(objective, held_out[:PROBE_CONTEXTS].to(accelerator.device), PROBE_SEED)
        if place.training_step == 0:
            training.metrics.add(round_index, 0, training.validate())
        training.run(objective, place, f"round {round_index}")
        save_student(run_directory, round_index, training, tokenizer, rounds, settings, place, schedule)
    return round_directory(run_directory, rounds.num_rounds - 1)


def begin_round(
    training: TrainingLoop, place: Place, round_index: int, teacher_path: str, rounds: RoundsConfig
) -> Place:
    """Return the place where a round goes on, or begins, once its teacher is known to be the right one.

    Raises:
        ValueError: if the teacher has changed since the round began.
    """
    teacher_hash = weights_hash(resolve(teacher_path))
    if round_index == place.round_index and place.training_step > 0:
        if place.teacher != teacher_hash:
            raise ValueError(
                f"the teacher {teacher_path} has changed since round {round_index} began with it; "
                "put it back, or choose another output"
            )
        return place
    if round_index > 0 and rounds.optimizer_state == "reset":
        training.optimizer = training.optimizer_config.build(training.model)
    return replace(place, round_index=round_index, training_step=0, teacher=teacher_hash)


def check_lora(student: str | None, rounds: RoundsConfig, loop: LoopConfig) -> None:
    """Raise ValueError if a setting has no meaning where adapters alone are trained."""
    for name, value, wanted in (
        ("student", student, None),
        ("rounds.optimizer_state", rounds.optimizer_state, "reset"),
        ("loop.sharding", loop.sharding, "none"),
    ):
        if value != wanted:
            raise ValueError(
                f"{name} is {value}, and with a lora.rank each round begins with fresh adapters on its whole "
                "teacher; leave it out"
            )


def begin_adapters(training: TrainingLoop, place: Place, teacher_path: str) -> None:
    """Give the network the weights of the round's teacher, and at its beginning fresh adapters."""
    weights = {name: parameter.detach() for name, parameter in load_denoiser(teacher_path).named_parameters()}
    load_frozen(training.model, weights)
    if place.training_step == 0:
        restart(training.model, seeds.generator(training.config.seed, ADAPTERS, place.round_index))
        training.average.average = ExponentialMovingAverage(training.model, 0.0).average


def round_directory(run_directory: Path, round_index: int) -> Path:
    """Return where a round's student is saved."""
    return run_directory / f"round_{round_index}"


def save_student(
    run_directory: Path,
    round_index: int,
    training: TrainingLoop,
    tokenizer: PreTrainedTokenizerBase,
    rounds: RoundsConfig,
    settings: dict[str, Any],
    place: Place,
    schedule: str,
) -> None:
    """Save the student of a finished round with its manifest; all processes take part."""
    averaged = rounds.next_teacher == "ema"
    weights = training.average.average if averaged else dict(training.model.named_parameters())
    loop, context_length = training.config, training.loader.context_length
    manifest = {
        "kind": "diffusion",
        "schedule": schedule,
        "round_index": round_index,
        "num_steps": rounds.student_steps(round_index),
        "teacher": place.teacher,
        "delta": rounds.delta(round_index),
        "weights_are": rounds.next_teacher,
        "tokens_seen": (round_index + 1) * loop.training_steps * loop.batch_size * context_length,
        "settings": settings,
        **training.validate(),
    }
    if adapters(training.model):
        with averaged_weights(training.model, training.average) if averaged else nullcontext():
            weights = merged(training.model)
    is_main = training.accelerator.is_main_process
    weights = whole({name: weight.detach() for name, weight in weights.items()}, wanted=is_main)
    if is_main:
        save_checkpoint(
            round_directory(run_directory, round_index),
            training.model,
            tokenizer,
            manifest,
            state_dict=weights,
        )
    training.accelerator.wait_for_everyone()


def load_denoiser(name_or_path: str) -> Denoiser | HuggingFaceDenoiser:
    """Return a denoiser.

    Raises:
        ValueError: if the checkpoint is of an autoregressive model.
    """
    model = load_model(name_or_path)
    if isinstance(model, AutoregressiveLM):
        raise ValueError(f"{name_or_path} is an autoregressive model; distillation needs a denoiser")
    return model


def check_same_shape(student: nn.Module, teacher: nn.Module, student_name: str, teacher_name: str) -> None:
    """Raise ValueError if two denoisers differ in shape."""
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the student {student_name} has another shape than its teacher {teacher_name}; "
            "choose one of the same vocabulary, width, layers and heads"
        )
