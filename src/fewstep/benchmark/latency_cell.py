"""One cell of `bench latency`: a shape at a batch, both sides timed in turn.

The autoregressive side is timed by tokens at several cache lengths (see `autoregressive`), the denoiser
by each kind of step (see `denoising`), and the whole of either is the sum over its passes. The full step
is timed at the fewest and at the most of the wanted numbers of steps, `full@8` and `full@64`, and the
partial one at each, `partial@8`, `partial@16` and so on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fewstep import seeds
from fewstep.benchmark import denoising, networks
from fewstep.benchmark.autoregressive import (
    Gpt2AtCacheLength,
    TokensAtCacheLength,
    cache_lengths,
    integrated,
)
from fewstep.benchmark.denoising import StepsOfDenoiser, full_weights
from fewstep.benchmark.latency_settings import LatencySettings
from fewstep.benchmark.machine import available_bytes
from fewstep.benchmark.measured_rows import MeasuredRows
from fewstep.benchmark.roofline import full_passes
from fewstep.benchmark.sampling import Progress
from fewstep.benchmark.timing import Stopwatch, Task, Timing, in_turn
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.autoregressive import continue_in_steps


class Cell:
    """All rows of one shape at one batch, measured in turn."""

    def __init__(
        self, settings: LatencySettings, shape: str, batch: int, denoiser: Denoiser,
        autoregressive: AutoregressiveLM,
    ) -> None:  # fmt: skip
        self.settings, self.shape, self.batch = settings, shape, batch
        self.denoiser, self.autoregressive = denoiser, autoregressive
        self.device = torch.device(settings.device)
        self.starts = cache_lengths(settings.length, settings.timed_tokens)

    def rows(self, keys: Sequence[dict[str, Any]], progress: Progress) -> list[dict[str, Any]]:
        """Return the rows of `keys`."""
        sides: list[list[Task]] = []
        note = None
        steps = self.steps_of_denoiser(keys)  # before it is asked whether GPT-2 still fits
        if any(key["steps"] is None for key in keys):
            sides.append(self.our_tokens())
            note = self.why_no_gpt2()
            if note is None:
                progress(f"{self.shape}: drawing weights of Hugging Face's GPT-2")
                sides.append(self.gpt2_tokens())
        warm_up: list[Callable[[], object]] = [tasks[0] for tasks in sides]
        if steps is not None:
            sides.append(self.step_tasks(keys, steps))
            warm_up.append(steps.warm_up)
        timings = in_turn(
            [task for tasks in sides for task in tasks],
            repeats=self.settings.repeats,
            warm_up=warm_up,
            max_seconds=self.settings.max_seconds,
        )
        return [
            self.autoregressive_row(timings, note)
            if key["steps"] is None
            else self.diffusion_row(timings, key["steps"], key["cache_refresh"], fewest_and_most(keys))
            for key in keys
        ]

    def our_tokens(self) -> list[Task]:
        """Return the tasks of our autoregressive model, one a cache length."""
        tokens = TokensAtCacheLength(
            self.autoregressive,
            batch=self.batch,
            length=self.settings.length,
            timed_tokens=self.settings.timed_tokens,
            seed=self.settings.seed,
        )
        return self.token_tasks("ar", tokens.seconds)

    def gpt2_tokens(self) -> list[Task]:
        """Return the tasks of Hugging Face's model at the same cache lengths."""
        tokens = Gpt2AtCacheLength(
            networks.new_gpt2(self.shape, self.settings.length, self.device),
            batch=self.batch,
            length=self.settings.length,
            timed_tokens=self.settings.timed_tokens,
        )
        return self.token_tasks("hf", tokens.seconds)

    def steps_of_denoiser(self, keys: Sequence[dict[str, Any]]) -> StepsOfDenoiser | None:
        """Return what times steps; None if no row of `keys` has any."""
        if all(key["steps"] is None for key in keys):
            return None
        return StepsOfDenoiser(
            self.denoiser, batch=self.batch, length=self.settings.length, seed=self.settings.seed
        )

    def step_tasks(self, keys: Sequence[dict[str, Any]], steps: StepsOfDenoiser) -> list[Task]:
        """Return the tasks that time every kind of step that the rows of `keys` need."""
        full = sorted({*fewest_and_most(keys)})
        cached = {key["steps"] for key in keys if key["cache_refresh"] not in (None, 1)}
        return [
            *(task_of(f"full@{number}", steps.full_seconds, number) for number in full),
            *(task_of(f"partial@{number}", steps.partial_seconds, number) for number in sorted(cached - {1})),
        ]

    def why_no_gpt2(self) -> str | None:
        """Return why Hugging Face's model is not measured in this cell; None if it is."""
        if self.batch != min(self.settings.batches):
            return "measured at the smallest batch only"
        needed = networks.weight_bytes(self.shape, self.device) + networks.generation_bytes(
            self.shape, self.batch, self.settings.length, self.device
        )
        available = available_bytes(self.device)
        if available is not None and needed > available:
            return f"needs about {needed / 1e9:.1f} GB more, and {available / 1e9:.1f} GB are free"
        return None

    def token_tasks(self, side: str, seconds: Callable[[int], float]) -> list[Task]:
        """Return a task for each cache length, which times tokens of `side`."""
        return [task_of(f"{side}@{start}", seconds, start) for start in self.starts]

    def diffusion_row(
        self, timings: dict[str, Timing], num_steps: int, cache_refresh: int, full_at: tuple[int, int]
    ) -> dict[str, Any]:
        """Return the row of a number of steps: so many full passes, so many partial ones.

        Args:
            full_at: The fewest and the most steps, at which the full one was timed.
        """
        num_full = full_passes(num_steps, cache_refresh)
        weights = full_weights(num_steps, full_at)
        passes = {"full": num_full}
        parts = {"full": [(weight, timings[f"full@{steps}"]) for steps, weight in weights.items()]}
        if num_full < num_steps:
            passes["partial"] = num_steps - num_full
            parts["partial"] = [(1.0, timings[f"partial@{num_steps}"])]
        summands = [
            (passes[kind] * weight, timing) for kind, of_kind in parts.items() for weight, timing in of_kind
        ]
        row = self.row(
            num_steps,
            cache_refresh,
            seconds=sum(weight * timing.median for weight, timing in summands),
            spread=[sum(weight * timing.spread[side] for weight, timing in summands) for side in (0, 1)],
            repeats=min(len(timing.seconds) for _, timing in summands),
        )
        pass_seconds = {
            kind: sum(weight * timing.median for weight, timing in of_kind) for kind, of_kind in parts.items()
        }
        return row | {"passes": passes, "pass_seconds": pass_seconds}

    def autoregressive_row(self, timings: dict[str, Timing], note: str | None) -> dict[str, Any]:
        """Return the row of the autoregressive model, with Hugging Face's beside it."""
        ours = [timings[f"ar@{start}"] for start in self.starts]
        row = self.row(
            None,
            None,
            seconds=self.integrated([timing.median for timing in ours]),
            spread=[self.integrated([timing.spread[side] for timing in ours]) for side in (0, 1)],
            repeats=min(len(timing.seconds) for timing in ours),
        )
        num_timed = self.batch * self.settings.timed_tokens
        row |= {
            "cache_lengths": self.starts,
            "tokens_per_second_at": [num_timed / timing.median for timing in ours],
            "hf_tokens_per_second": None,
            "hf_tokens_per_second_at": None,
            "hf_note": note,
        }
        if note is None:
            theirs = [timings[f"hf@{start}"].median for start in self.starts]
            row["hf_tokens_per_second"] = self.batch * self.settings.length / self.integrated(theirs)
            row["hf_tokens_per_second_at"] = [num_timed / seconds for seconds in theirs]
        return row

    def integrated(self, seconds: Sequence[float]) -> float:
        return integrated(
            self.starts, seconds, timed_tokens=self.settings.timed_tokens, length=self.settings.length
        )

    def row(
        self, num_steps: int | None, cache_refresh: int | None, *, seconds: float, spread: list[float],
        repeats: int,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "model": self.shape,
            "batch": self.batch,
            "steps": num_steps,
            "cache_refresh": cache_refresh,
            "seconds": seconds,
            "tokens_per_second": self.batch * self.settings.length / seconds,
            "spread": spread,
            "repeats": repeats,
        }

    def check(self, measured: MeasuredRows) -> dict[str, Any]:
        """Return what full runs take against the rows' estimates: every kind of row, at the most steps."""
        num_steps = max(self.settings.steps)
        cells = [(None, None), *((num_steps, refresh) for refresh in self.settings.cache_refresh)]
        rows = []
        for steps, refresh in cells:
            with Stopwatch(self.device) as watch:
                *_, last = self.unmasking(steps, refresh) if steps else self.text()
            assert last.step == last.num_steps
            row = measured.row(model=self.shape, batch=self.batch, steps=steps, cache_refresh=refresh)
            ratio = row["seconds"] / watch.seconds
            rows.append(
                {"steps": steps, "cache_refresh": refresh, "full_seconds": watch.seconds,
                 "integrated_seconds": row["seconds"], "ratio": ratio}
            )  # fmt: skip
        return {"model": self.shape, "batch": self.batch, "rows": rows}

    def unmasking(self, num_steps: int, cache_refresh: int) -> Any:
        """Return the steps of the denoiser from masks, but for each first token, to a whole batch."""
        return denoising.generation(
            self.denoiser,
            denoising.canvas(self.denoiser, batch=self.batch, length=self.settings.length),
            num_steps=num_steps,
            cache_refresh=cache_refresh,
            seed=self.settings.seed,
        )

    def text(self) -> Any:
        """Return the steps of the autoregressive model from nothing to a whole batch."""
        return continue_in_steps(
            self.autoregressive,
            torch.zeros(self.batch, self.settings.length, dtype=torch.long, device=self.device),
            prompt_lengths=[0] * self.batch,
            generators=seeds.sequence_generators(self.settings.seed, count=self.batch),
        )


def fewest_and_most(keys: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the fewest and the most steps of the rows of `keys` that have any."""
    numbers = [key["steps"] for key in keys if key["steps"] is not None]
    return min(numbers), max(numbers)


def task_of(name: str, seconds: Callable[[int], float], place: int) -> Task:
    """Return the task that times `seconds(place)` as `name`."""
    return lambda: {name: seconds(place)}
