"""Runs that are stopped or killed, and resumed, are bit-identical to those that are not."""

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fewstep.losses.nelbo import NelboObjective
from fewstep.training.run_state import Place, saved_place
from tests.training.tiny_run import LONG, OBJECTIVE, assert_same_run, new_loop, program, train


@pytest.mark.parametrize("stop_after", [1, 5, 13, 23])
def test_interrupted_and_resumed_run_is_bit_identical(
    stop_after: int, tmp_path: Path, uninterrupted: Path
) -> None:
    """Ctrl-C after some updates, then the same run with every object made anew."""

    @dataclass(frozen=True, kw_only=True)
    class Interrupted(NelboObjective):
        def prepare(self, tokens_BL: torch.Tensor, training_step: int) -> dict[str, torch.Tensor]:
            if training_step == stop_after:
                raise KeyboardInterrupt
            return super().prepare(tokens_BL, training_step)

    loop, place = new_loop(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        loop.run(Interrupted(**vars(OBJECTIVE)), place, "test")
    torch.rand(3)  # the resumed process has another global random state
    _, place = new_loop(tmp_path)
    assert place.training_step == stop_after // 5 * 5
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_killed_and_resumed_run_is_bit_identical(tmp_path: Path, uninterrupted_long: Path) -> None:
    """kill -9 at a random point of a real process; where, changes from one test run to the next."""
    after_records = random.SystemRandom().randint(5, 80)
    after_seconds = random.SystemRandom().random() * 0.02
    process = program("long", tmp_path)
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < after_records:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(after_seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    place = saved_place(tmp_path)
    assert place is None or place.training_step < 120
    train(tmp_path, LONG)
    assert_same_run(tmp_path, uninterrupted_long)


@pytest.mark.parametrize("mode", ["kill while writing", "kill between renames"])
def test_kill_while_saving_leaves_the_state_before(mode: str, tmp_path: Path, uninterrupted: Path) -> None:
    """The second save of a real process, after 10 updates, is cut off by SIGKILL."""
    process = program(mode, tmp_path)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert saved_place(tmp_path) == Place(training_step=5)
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)
