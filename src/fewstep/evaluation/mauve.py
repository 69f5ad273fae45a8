"""MAUVE: how near the distribution of generated texts is to that of human ones.

Features of both are clustered together; MAUVE is the area under the curve of divergences between the two
histograms and their mixtures (Pillutla et al., 2021). The value is that of the library mauve-text.

It depends on the features, so a result carries their name; and on the number of texts and their length,
so only values of equal numbers and lengths compare.
"""

import contextlib
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.evaluation.features import features
from fewstep.evaluation.judge import SMOLLM2

FEWEST_TEXTS = 20
"""The library makes a cluster of every ten texts, and one cluster tells nothing apart."""


@dataclass(frozen=True, kw_only=True)
class Mauve:
    """The MAUVE of one clustering a seed, from 0 to 1; higher is nearer."""

    featurizer: str
    """Whose features were compared."""
    values: tuple[float, ...]
    """One for each seed."""

    @property
    def name(self) -> str:
        """What to call the value: mauve_FEATURIZER; of a path or repository, its last part."""
        return f"mauve_{Path(self.featurizer).name}"

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over clusterings, the texts given; NaN for a single one."""
        if len(self.values) < 2:
            return math.nan
        return statistics.stdev(self.values) / math.sqrt(len(self.values))


def mauve(
    generated: Sequence[str],
    references: Sequence[str],
    *,
    featurizer: str = SMOLLM2,
    scaling_factor: float = 5,
    seeds: Sequence[int] = range(5),
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Mauve:
    """Return the MAUVE of `generated` against `references`.

    Args:
        generated: Texts of a model, such as prompts with its continuations.
        references: Human texts of the same kind, such as the same prompts with their own.
        featurizer: Whose features are compared: "smollm2", "minilm", a network of the hub, or a directory.
        scaling_factor: c of exp(-c * divergence); 5 in the literature.
        seeds: Seeds of the clusterings.
        device: Where the featurizer runs.
        progress: Called after each of its passes with the texts done so far, and in all.

    Raises:
        ValueError: if there are fewer than 20 texts on a side, one is empty, a setting is out of range,
            the library is not installed, or the featurizer cannot be loaded.
    """
    for name, texts in (("generated", generated), ("references", references)):
        if len(texts) < FEWEST_TEXTS:
            raise ValueError(
                f"MAUVE needs at least {FEWEST_TEXTS} texts on each side, better thousands, and {name} has "
                f"{len(texts)}; make more"
            )
    if not scaling_factor > 0:
        raise ValueError(f"scaling_factor is {scaling_factor}; it must be above 0")
    if not seeds:
        raise ValueError("seeds is empty; MAUVE needs at least one clustering")
    try:
        import mauve as library
    except ImportError as error:
        raise ValueError("MAUVE needs mauve-text; run `pip install 'fewstep[eval]'`") from error
    compute_mauve: Any = library.compute_mauve
    both_ND = features([*generated, *references], featurizer, device=device, progress=progress)
    with _silenced():
        values = tuple(
            float(
                compute_mauve(
                    p_features=both_ND[: len(generated)],
                    q_features=both_ND[len(generated) :],
                    mauve_scaling_factor=scaling_factor,
                    seed=seed,
                ).mauve
            )
            for seed in seeds
        )
    return Mauve(featurizer=featurizer, values=values)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop Python's warnings and what is written to the process's standard error while the block runs.

    faiss has no switch: it warns from C of fewer than 39 points a cluster, and the library makes a
    cluster of every ten generated texts.
    """
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
