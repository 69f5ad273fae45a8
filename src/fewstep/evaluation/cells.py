"""The cells of an evaluation: each model with each way to write that it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fewstep.evaluation.samples import Sampling
from fewstep.sampling.samplers import SamplerName
from fewstep.sampling.text_model import TextModel


@dataclass(frozen=True)
class Cell:
    """One model and one way to write: what a row is about."""

    model: str
    sampling: Sampling

    def row(self) -> dict[str, Any]:
        """Return the settings that a row begins with."""
        return {
            "model": self.model,
            "steps": self.sampling.steps,
            "temperature": self.sampling.temperature,
            "cache_refresh": self.sampling.cache_refresh,
            "top_p": self.sampling.top_p,
        }


def cells_of(
    models: Mapping[str, TextModel],
    *,
    steps: Sequence[int],
    temperatures: Sequence[float],
    cache_refresh: Sequence[int],
    autoregressive_top_p: Sequence[float],
    sampler: SamplerName,
) -> list[Cell]:
    """Return the cells of all models, temperatures innermost.

    Denoisers have one for each number of steps and refresh interval, autoregressive models for each top-p.

    Raises:
        ValueError: if a list that a model needs is empty or repeats a value, or a value is out of range.
    """
    kinds = {model.is_denoiser for model in models.values()}
    lists: dict[str, Sequence[float]] = {"temperatures": temperatures}
    if True in kinds:
        lists |= {"steps": steps, "cache_refresh": cache_refresh}
    if False in kinds:
        lists |= {"autoregressive_top_p": autoregressive_top_p}
    for name, values in lists.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {list(values)}; name at least one value, and none twice")
    if min(steps, default=1) < 1 or min(cache_refresh, default=0) < 0:
        raise ValueError(
            f"steps is {list(steps)} and cache_refresh {list(cache_refresh)}; steps must be at least 1, and "
            "cache_refresh at least 0, which is never"
        )
    if not all(0 <= temperature < float("inf") for temperature in temperatures):
        raise ValueError(f"temperatures is {list(temperatures)}; each must be 0 or more, and finite")
    if not all(0 < top_p <= 1 for top_p in autoregressive_top_p):
        raise ValueError(
            f"autoregressive_top_p is {list(autoregressive_top_p)}; each must be above 0 and at most 1"
        )
    cells = []
    for name, model in models.items():
        if model.is_denoiser:
            ways = [
                Sampling(steps=count, cache_refresh=refresh, sampler=sampler, temperature=temperature)
                for count, refresh, temperature in product(steps, cache_refresh, temperatures)
            ]
        else:
            ways = [
                Sampling(steps=None, cache_refresh=None, temperature=temperature, top_p=top_p)
                for top_p, temperature in product(autoregressive_top_p, temperatures)
            ]
        cells += [Cell(name, way) for way in ways]
    return cells
