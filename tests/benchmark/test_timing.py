"""Tasks are taken in turn, warmed up first, and summed up by median and spread."""

import time

import pytest
import torch

from fewstep.benchmark.timing import Stopwatch, Timing, in_turn, timed

CPU = torch.device("cpu")


def test_tasks_are_taken_in_turn_after_the_warm_up() -> None:
    calls: list[str] = []

    def task(name: str, seconds: float):
        def run() -> dict[str, float]:
            calls.append(name)
            return {name: seconds}

        return run

    timings = in_turn([task("a", 1.0), task("b", 2.0)], repeats=3, warm_up=[lambda: calls.append("warm")])
    assert calls == ["warm", "a", "b", "a", "b", "a", "b"]
    assert timings == {"a": Timing((1.0, 1.0, 1.0)), "b": Timing((2.0, 2.0, 2.0))}


def test_a_long_task_is_left_out_of_further_rounds() -> None:
    calls: list[str] = []

    def long() -> dict[str, float]:
        calls.append("long")
        return {"first": 4.0, "second": 3.0}

    def short() -> dict[str, float]:
        calls.append("short")
        return {"short": 1.0}

    timings = in_turn([long, short], repeats=3, max_seconds=7.0)
    assert calls == ["long", "short", "short", "short"]
    assert timings["second"].seconds == (3.0,)
    assert timings["short"].seconds == (1.0, 1.0, 1.0)


def test_median_and_spread() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0))
    assert timing.median == 3.0
    assert timing.spread == (1.0, 5.0)


def test_the_stopwatch_measures_what_is_inside_it() -> None:
    started = time.perf_counter()
    with Stopwatch(CPU) as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds <= time.perf_counter() - started
    (seconds,) = timed("sleep", lambda: time.sleep(0.02), CPU)().values()
    assert seconds >= 0.02


def test_a_failing_task_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        in_turn([timed("wrong", lambda: 1 / 0, CPU)], repeats=1)
