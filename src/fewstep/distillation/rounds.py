"""The rounds of distillation: how many steps each teacher takes and each student is meant for."""

from dataclasses import dataclass
from typing import Literal

from fewstep.losses.divergences import DivergenceName


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Settings of SDTT; the defaults are the paper's."""

    base_steps: int = 1024
    """m, the steps that the first teacher is meant to take."""
    teacher_steps: int = 2
    """k, the teacher steps folded into one step of its student."""
    num_rounds: int = 7
    """Rounds; each has `loop.training_steps` training steps."""
    divergence: DivergenceName = "reverse_kl"
    """Distance of the student's prediction from its target; "reverse_kl" is KL(student || teacher)."""
    teacher_rollouts: int = 1
    """Rollouts of each corrupted batch, which share the first pass; the divergence is averaged."""
    next_teacher: Literal["ema", "raw"] = "ema"
    """Weights of a student that are saved and become the next teacher: their average, or the last."""
    optimizer_state: Literal["reset", "keep"] = "reset"
    """Whether a round begins with a fresh optimizer and warm-up or goes on with the last round's."""

    def __post_init__(self) -> None:
        for name, least in (
            ("base_steps", 1),
            ("teacher_steps", 2),
            ("num_rounds", 1),
            ("teacher_rollouts", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"rounds.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.teacher_steps**self.num_rounds > self.base_steps:
            raise ValueError(
                f"{self.num_rounds} rounds of {self.teacher_steps} teacher steps need a first teacher of "
                f"{self.teacher_steps**self.num_rounds} steps, and rounds.base_steps is {self.base_steps}; "
                "raise base_steps or take fewer rounds"
            )

    def delta(self, round_index: int) -> float:
        """Return the step size of a round's teacher, k^r / m."""
        return self.teacher_steps**round_index / self.base_steps

    def student_steps(self, round_index: int) -> int:
        """Return the steps that a round's student is meant for, m / k^(r + 1)."""
        return self.base_steps // self.teacher_steps ** (round_index + 1)
