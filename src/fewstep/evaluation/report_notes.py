"""What a report says in words: the models, the live distillation, and how the numbers were made."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import fewstep
from fewstep.evaluation.judge import SMOLLM2
from fewstep.evaluation.report import Contender, LiveRound
from fewstep.evaluation.samples import Samples
from fewstep.sampling.text_model import TextModel

ROLES = ("teacher", "live-student", "shipped-student", "autoregressive")
"""The models of a demo, by the names of their rows, in the order of its report."""
TEACHER, LIVE, SHIPPED, AUTOREGRESSIVE = ROLES
LABELS = {
    TEACHER: "Teacher",
    LIVE: "Live student (minutes)",
    SHIPPED: "Shipped student",
    AUTOREGRESSIVE: "Autoregressive baseline",
}


def contenders(
    models: Mapping[str, TextModel], live_seconds: float, student_path: str | None = None
) -> list[Contender]:
    """Return what the report says of each model, from the manifests of the checkpoints.

    Args:
        models: One for each of ROLES.
        live_seconds: What the live distillation took.
        student_path: Where the student in the place of the shipped one came from, if it is another.
    """
    origin = "Distilled" if student_path is None else f"Loaded from {student_path}; distilled"
    about = {
        TEACHER: f"The masked diffusion model that both students come from: {_trained(models[TEACHER])}.",
        LIVE: f"Distilled in this demo, in {duration(live_seconds)} of training: {_distilled(models[LIVE])}.",
        SHIPPED: f"{origin} beforehand by the same command, fewstep distill: {_distilled(models[SHIPPED])}.",
        AUTOREGRESSIVE: "The same network made causal, which writes from left to right, one token a pass: "
        f"{_trained(models[AUTOREGRESSIVE])}.",
    }
    labels = dict(LABELS)
    if student_path is not None:
        labels[SHIPPED] = "Student distilled beforehand"
    return [Contender(name=role, label=labels[role], about=about[role]) for role in ROLES]


def live_description(rounds: Sequence[LiveRound], settings: Mapping[str, Any], seconds: float) -> str:
    """Return what the live distillation with `settings` (of its manifest) did in `seconds`."""
    each = rounds[-1].training_steps[-1]
    sequences = sum(one.training_steps[-1] for one in rounds) * settings["loop"]["batch_size"]
    count = "one round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    folded = settings["rounds"]["teacher_steps"]
    return (
        f"This run distilled the teacher for {count} of {each} training steps: {sequences:,} sequences "
        f"in {duration(seconds)} of training. A round teaches a student to predict in one step what its "
        f"teacher does in {folded}, and its student is the teacher of the next. The probe is a fixed set "
        "of masked texts with fixed targets. Most of the divergence is the randomness of those targets "
        "and never goes away; its fall is what the student has learnt. The shipped student is what more "
        "of the same command makes."
    )


def method(samples: Samples, judge: str, live_settings: Mapping[str, Any], minutes: float) -> dict[str, str]:
    """Return what a reader needs to judge the numbers.

    Args:
        samples: What each row rests on.
        judge: Name of the judge.
        live_settings: Settings in the manifest of the live student.
        minutes: What the whole demo took.
    """
    batches = len(samples.batch_seeds)
    live, rounds = live_settings, live_settings["rounds"]
    return {
        "Judge": f"{judge_title(judge)}, in float32. It reads each decoded text after its own start token; "
        "every token counts.",
        "Generative perplexity": "exp(nats of all texts / the judge's tokens of all texts); lower means "
        "that the judge finds the texts likelier. Bits per byte are the same nats over the texts' bytes.",
        "Unigram entropy": "Entropy in nats of each text's own tokens, averaged over texts. A text that "
        "repeats itself pleases the judge and has a low entropy, so the two are read together.",
        "Texts": f"{samples.num_samples} of {samples.length} tokens for each row, without a prompt, at "
        f"temperature 1, by ancestral sampling, seed {samples.seed}.",
        "Errors": "± and bands are one standard error over the texts of the row.",
        "Time": f"Median wall-clock time of {batches} {'batch' if batches == 1 else 'batches'} of "
        f"{samples.batch_size} texts, the model loaded and warm. A step costs at most one forward pass; "
        "the baseline keeps its keys and values.",
        "Live distillation": f"fewstep distill on {live['data']['corpus']['source']}: teacher "
        f"{live['teacher']} at {rounds['base_steps']} steps, {rounds['teacher_steps']} of them to one, "
        f"{rounds['divergence']}, batch {live['loop']['batch_size']}, learning rate "
        f"{live['optimizer']['learning_rate']:g}, seed {live['loop']['seed']}.",
        **surroundings(),
        "Whole demo": f"{minutes:.1f} minutes",
    }


def judge_title(judge: str) -> str:
    """Return what the judge `judge` is."""
    return "SmolLM2-135M-Instruct, unpacked from 4-bit weights" if judge == SMOLLM2 else judge


def surroundings() -> dict[str, str]:
    """Return the versions and the hardware that numbers were made with."""
    return {
        "Versions": f"fewstep {fewstep.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
        "Hardware": f"{_processor()}, {torch.get_num_threads()} threads",
    }


def duration(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _trained(model: TextModel) -> str:
    words = _size(model)
    if "tokens_seen" in model.manifest:
        words += f", trained on {_tokens(model)}"
        if model.manifest.get("settings", {}).get("init_from"):
            words += " after those of the weights it started from"
    return words


def _distilled(model: TextModel) -> str:
    manifest = model.manifest
    if "round_index" not in manifest:
        return _size(model)
    count, settings = manifest["round_index"] + 1, manifest["settings"]
    words = f"{count} {'round' if count == 1 else 'rounds'} of {settings['loop']['training_steps']:,}"
    words += f" training steps, {_tokens(model)}"
    if Path(settings.get("teacher", "")).name.startswith("round_"):
        words += " after those of its teacher, itself a student"
    return f"{words}; meant for {manifest['num_steps']} steps"


def _tokens(model: TextModel) -> str:
    tokens = model.manifest["tokens_seen"]
    return f"{tokens / 1e6:.1f}M tokens" if tokens >= 1e6 else f"{tokens:,} tokens"


def _size(model: TextModel) -> str:
    return f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.1f}M parameters at inference"


def _processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
