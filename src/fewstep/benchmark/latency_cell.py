"""One cell of `bench latency`: a shape at a batch, both sides timed in turn.

The autoregressive side is timed by tokens at several cache lengths (see `autoregressive`). The denoiser
is timed by each kind of step, and the whole is the sum over the steps. A timed step is a real step of the
sampling loop, drawing included. The sampler is "first-hitting", which unmasks the same number of
positions in every step, so that one step of a kind costs what another does:

    full      computes all positions
    refresh   does so, and keeps their keys and values
    partial   computes the positions that unmask now and those that the step before unmasked

With `cache_refresh` 1 all steps are full; with R, every R-th is a refresh and the others are partial.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch

from fewstep import seeds
from fewstep.benchmark import networks
from fewstep.benchmark.autoregressive import (
    Gpt2AtCacheLength,
    TokensAtCacheLength,
    cache_lengths,
    integrated,
)
from fewstep.benchmark.latency_settings import LatencySettings
from fewstep.benchmark.machine import available_bytes
from fewstep.benchmark.measured_rows import MeasuredRows
from fewstep.benchmark.roofline import full_passes
from fewstep.benchmark.sampling import SCHEDULE, Progress
from fewstep.benchmark.timing import Stopwatch, Task, Timing, in_turn
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.autoregressive import continue_in_steps
from fewstep.sampling.loop import unmask_in_steps
from fewstep.sampling.samplers import sampler_named

SAMPLER = "first-hitting"


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
        if any(key["steps"] is None for key in keys):
            sides.append(self.our_tokens())
            note = self.why_no_gpt2()
            if note is None:
                progress(f"{self.shape}: drawing weights of Hugging Face's GPT-2")
                sides.append(self.gpt2_tokens())
        sides.append(self.steps_of(keys))
        timings = in_turn(
            [task for tasks in sides for task in tasks],
            repeats=self.settings.repeats,
            warm_up=[tasks[0] for tasks in sides if tasks],
            max_seconds=self.settings.max_seconds,
        )
        return [
            self.autoregressive_row(timings, note)
            if key["steps"] is None
            else self.diffusion_row(timings, key["steps"], key["cache_refresh"])
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

    def steps_of(self, keys: Sequence[dict[str, Any]]) -> list[Task]:
        """Return the tasks that time every kind of step that the rows of `keys` need."""
        tasks = []
        for steps in sorted({key["steps"] for key in keys if key["steps"] is not None}):
            refreshes = {key["cache_refresh"] for key in keys if key["steps"] == steps}
            tasks += [self.step_task(steps, cached=True)] if refreshes - {1} else []
            tasks += [self.step_task(steps, cached=False)] if 1 in refreshes else []
        return tasks

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

        def task_at(start: int) -> Task:
            return lambda: {f"{side}@{start}": seconds(start)}

        return [task_at(start) for start in self.starts]

    def step_task(self, num_steps: int, *, cached: bool) -> Task:
        """Return a task that times the first step of a generation, and if `cached` also the second."""

        def task() -> dict[str, float]:
            seconds = {}
            kinds = ["refresh", "partial"] if cached else ["full"]
            with closing(self.generation(num_steps, 0 if cached else 1)) as steps:
                for kind in kinds[:num_steps]:
                    with Stopwatch(self.device) as watch:
                        next(steps)
                    seconds[f"{kind}@{num_steps}"] = watch.seconds
            return seconds

        return task

    def generation(self, num_steps: int, cache_refresh: int) -> Any:
        """Return the steps of a generation from nothing."""
        mask = self.denoiser.mask_token_id
        return unmask_in_steps(
            self.denoiser,
            torch.full((self.batch, self.settings.length), mask, device=self.device),
            num_steps=num_steps,
            sampler=sampler_named(SAMPLER),
            schedule=SCHEDULE,
            generators=seeds.sequence_generators(self.settings.seed, count=self.batch),
            cache_refresh=cache_refresh,
        )

    def diffusion_row(self, timings: dict[str, Timing], num_steps: int, cache_refresh: int) -> dict[str, Any]:
        """Return the row of a number of steps: so many full passes, so many partial ones."""
        num_full = full_passes(num_steps, cache_refresh)
        full = timings[f"{'full' if cache_refresh == 1 else 'refresh'}@{num_steps}"]
        kinds = [(num_full, full)]
        if num_full < num_steps:
            kinds.append((num_steps - num_full, timings[f"partial@{num_steps}"]))
        row = self.row(
            num_steps,
            cache_refresh,
            seconds=sum(count * timing.median for count, timing in kinds),
            spread=[sum(count * timing.spread[side] for count, timing in kinds) for side in (0, 1)],
            repeats=min(len(timing.seconds) for _, timing in kinds),
        )
        names = ("full", "partial")
        return row | {
            "passes": {name: count for name, (count, _) in zip(names, kinds, strict=False)},
            "pass_seconds": {name: timing.median for name, (_, timing) in zip(names, kinds, strict=False)},
        }

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
                *_, last = self.generation(steps, refresh) if steps else self.text()
            assert last.step == last.num_steps
            row = measured.row(model=self.shape, batch=self.batch, steps=steps, cache_refresh=refresh)
            ratio = row["seconds"] / watch.seconds
            rows.append(
                {"steps": steps, "cache_refresh": refresh, "full_seconds": watch.seconds,
                 "integrated_seconds": row["seconds"], "ratio": ratio}
            )  # fmt: skip
        return {"model": self.shape, "batch": self.batch, "rows": rows}

    def text(self) -> Any:
        """Return the steps of the autoregressive model from nothing to a whole batch."""
        return continue_in_steps(
            self.autoregressive,
            torch.zeros(self.batch, self.settings.length, dtype=torch.long, device=self.device),
            prompt_lengths=[0] * self.batch,
            generators=seeds.sequence_generators(self.settings.seed, count=self.batch),
        )
