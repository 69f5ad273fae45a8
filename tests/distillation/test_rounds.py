"""Step sizes of the rounds by hand, and settings that are refused."""

import pytest

from fewstep.distillation.rounds import RoundsConfig


def test_rounds_of_the_paper() -> None:
    """m = 1024, k = 2, 7 rounds: students of 512, 256, ..., 8 steps."""
    rounds = RoundsConfig()
    assert [rounds.delta(r) for r in range(7)] == [2**r / 1024 for r in range(7)]
    assert [rounds.student_steps(r) for r in range(7)] == [512, 256, 128, 64, 32, 16, 8]


def test_rounds_of_three_teacher_steps() -> None:
    rounds = RoundsConfig(base_steps=27, teacher_steps=3, num_rounds=3)
    assert [rounds.delta(r) for r in range(3)] == pytest.approx([1 / 27, 3 / 27, 9 / 27])
    assert [rounds.student_steps(r) for r in range(3)] == [9, 3, 1]


def test_a_student_step_is_teacher_steps_of_the_teacher() -> None:
    """Round r's student step, k * delta_r, is the teacher's step of round r + 1."""
    rounds = RoundsConfig(base_steps=64, teacher_steps=4, num_rounds=3)
    for r in range(2):
        assert rounds.teacher_steps * rounds.delta(r) == rounds.delta(r + 1) == 1 / rounds.student_steps(r)


def test_rounds_that_end_below_one_step_are_refused() -> None:
    RoundsConfig(base_steps=8, num_rounds=3)
    message = r"4 rounds of 2 teacher steps need a first teacher of 16 steps, and rounds.base_steps is 8"
    with pytest.raises(ValueError, match=message):
        RoundsConfig(base_steps=8, num_rounds=4)
    with pytest.raises(ValueError, match=r"first teacher of 9 steps, and rounds.base_steps is 8"):
        RoundsConfig(base_steps=8, teacher_steps=3, num_rounds=2)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("base_steps", 0, 1), ("teacher_steps", 1, 2), ("num_rounds", 0, 1), ("teacher_rollouts", 0, 1)],
)
def test_numbers_too_small_are_refused(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"rounds.{name} is {value}; it must be at least {least}"):
        RoundsConfig(**{name: value})
