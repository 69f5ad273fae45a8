"""`bench distill`: one training step of SDTT, ours against the plain one with tensors of size B x L x V.

Both train the same student with the same optimizer on the same corrupted batches, in turn. The student
starts as a copy of the teacher, as in every round.

Memory is the peak of one training step above what is held before it. What is held then, for both alike:
the weights of student and teacher, the optimizer's state, and the student's gradients, which
`zero_grad(set_to_none=False)` keeps. So the peak counts activations, logits, targets, noise, and the
gradients that are in flight.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewstep import seeds
from fewstep.benchmark import networks
from fewstep.benchmark.machine import checked_device, describe
from fewstep.benchmark.peak_memory import can_measure, peak_above
from fewstep.benchmark.plain_code import load_plain
from fewstep.benchmark.sampling import Progress
from fewstep.benchmark.timing import Timing, in_turn, timed
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.distillation.objective import DistillationObjective
from fewstep.models.language_model import Denoiser

BASE_STEPS = 1024
LEARNING_RATE = 1e-5
TOKENS, NOISE = 0, 1
PLAIN_COPIES = 10
"""Float32 tensors of size B x L x V that the plain training step holds at its peak, about."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What `bench distill` runs; the command describes each field."""

    shape: str
    lengths: tuple[int, ...]
    tokens: int
    teacher_steps: int
    activation_checkpointing: bool
    repeats: int
    seed: int
    device: str

    def __post_init__(self) -> None:
        checked_device(self.device)
        networks.check_positive(lengths=self.lengths, tokens=self.tokens, repeats=self.repeats)
        for length in self.lengths:
            networks.check_shape(self.shape, length)
            if self.tokens % length:
                raise ValueError(f"tokens is {self.tokens}, which is no multiple of length {length}")
        if self.teacher_steps < 2:
            raise ValueError(f"teacher_steps is {self.teacher_steps}; it must be at least 2")

    def check_memory(self) -> None:
        """Raise ValueError if weights, optimizer and the plain training step's tensors do not fit."""
        device = torch.device(self.device)
        sizes = networks.sizes_of(self.shape, device)
        positions = self.tokens
        activations = positions * sizes.width * sizes.num_layers * (3 * sizes.mlp_ratio + 12) * 4
        networks.check_fits(
            f"distilling {self.shape} with {self.tokens} tokens a training step",
            5 * networks.num_parameters(self.shape) * 4  # teacher, student, gradients, two moments
            + activations
            + PLAIN_COPIES * positions * sizes.vocab_size * 4,
            device,
            "choose fewer tokens or a smaller shape",
        )


class Contest:
    """The two training steps on one student, at one length.

    Each counts its own training steps, so that run number n of both sees the same batch.
    """

    def __init__(
        self, teacher: Denoiser, student: Denoiser, optimizer: torch.optim.Optimizer, plain: ModuleType,
        settings: DistillSettings, length: int,
    ) -> None:  # fmt: skip
        self.teacher, self.student, self.optimizer, self.plain = teacher, student, optimizer, plain
        self.settings = settings
        self.device = torch.device(settings.device)
        self.objective = DistillationObjective(
            teacher=teacher,
            delta=1 / BASE_STEPS,
            teacher_steps=settings.teacher_steps,
            teacher_rollouts=1,
            divergence="reverse_kl",
            schedule=SCHEDULES["log-linear"],
            seed=settings.seed,
        )
        self.tokens_BL = torch.randint(
            teacher.vocab_size,
            (settings.tokens // length, length),
            generator=seeds.generator(settings.seed, TOKENS),
        ).to(self.device)
        self.numbers = {"ours": count(), "plain": count()}

    def ours(self) -> None:
        """Make a training step with the fused objective."""
        batch = self.batch("ours")
        self.student.backbone.activation_checkpointing = self.settings.activation_checkpointing
        with self.autocast():
            loss = self.objective.loss_sum(self.student, batch) / self.objective.normalizer(batch)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()

    def plainly(self) -> None:
        """Make a training step with whole tensors."""
        batch = self.batch("plain")
        self.student.backbone.activation_checkpointing = False
        with self.autocast():
            self.plain.plain_training_step(
                self.student,
                self.teacher,
                self.optimizer,
                batch["corrupted"],
                batch["times"],
                delta=self.objective.delta,
                teacher_steps=self.objective.teacher_steps,
                schedule=self.objective.schedule,
                generator=seeds.generator(self.settings.seed, NOISE, device=self.device),
            )

    def batch(self, side: str) -> dict[str, Tensor]:
        """Return the next corrupted batch of "ours" or "plain"."""
        return self.objective.prepare(self.tokens_BL, next(self.numbers[side]))

    def autocast(self) -> torch.autocast:
        """Both compute as training does: in bfloat16 on CUDA."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @property
    def works(self) -> dict[str, Callable[[], None]]:
        """The two training steps by the name that their seconds carry."""
        return {"ours": self.ours, "plain": self.plainly}


def run_distill(settings: DistillSettings, progress: Progress) -> dict[str, Any]:
    """Return `rows`, one for each length, `speedup`, `memory_ratio`, and the machine.

    `speedup` is the smallest over lengths and `memory_ratio` the largest.

    Raises:
        ValueError: if this is no checkout, the system does not tell peak memory, or the work cannot fit.
    """
    plain = load_plain("distill")
    device = torch.device(settings.device)
    if not can_measure(device):
        raise ValueError("bench distill measures peak memory, which needs Linux or CUDA")
    settings.check_memory()
    machine = describe(device) | {"precision": "bfloat16 autocast" if device.type == "cuda" else "float32"}
    progress(f"{settings.shape}: drawing untrained weights")
    teacher = networks.new_denoiser(settings.shape, device, dtype=torch.float32).requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    teacher.folded()  # as training does
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
    rows = []
    for length in settings.lengths:
        contest = Contest(teacher, student, optimizer, plain, settings, length)
        tasks = [timed(name, work, device) for name, work in contest.works.items()]
        timings = in_turn(tasks, repeats=settings.repeats, warm_up=list(contest.works.values()))
        peaks = {name: peak_above(work, device) for name, work in contest.works.items()}
        rows.append(_row(settings, length, timings, peaks))
        progress(
            f"length {length}: {rows[-1]['speedup']:.2f} times the training steps/s of the plain one "
            f"in {rows[-1]['memory_ratio']:.2f} of its memory"
        )
    return {
        "benchmark": "distill",
        "speedup": min(row["speedup"] for row in rows),
        "memory_ratio": max(row["memory_ratio"] for row in rows),
        "rows": rows,
        "settings": asdict(settings),
        "machine": machine,
    }


def _row(
    settings: DistillSettings, length: int, timings: dict[str, Timing], peaks: dict[str, int]
) -> dict[str, Any]:
    return {
        "model": settings.shape,
        "batch": settings.tokens // length,
        "length": length,
        "speedup": timings["plain"].median / timings["ours"].median,
        "memory_ratio": peaks["ours"] / peaks["plain"] if peaks["plain"] else None,
        "training_steps_per_second": {name: 1 / timing.median for name, timing in timings.items()},
        "seconds": {name: timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "peak_bytes": peaks,
    }
