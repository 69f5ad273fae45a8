"""What an evaluation measures with and on, besides models and what they write."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from fewstep.evaluation.held_out import Continuations, HeldOut, Passage
from fewstep.evaluation.judge import Judge, load_judge
from fewstep.evaluation.samples import Samples, digest_of
from fewstep.models.checkpoint import resolve, weights_hash


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Prompts, real text, passages and judge; those that no metric needs are empty."""

    samples: Samples
    continuations: Continuations
    held_out: HeldOut
    passages: Sequence[Passage]
    """What is continued."""
    cloze: Sequence[str]
    """Passages whose last word is asked for."""
    judge_name: str
    featurizer: str
    after_end: str
    device: str

    @functools.cached_property
    def judge(self) -> Judge:
        """The judge, loaded when it is first asked for."""
        return load_judge(self.judge_name, device=self.device)

    def writing(self, kind: str) -> dict[str, Any]:
        """Return how the sample sets of "texts" or "continuations" are made, as `sample_set` names it."""
        if kind == "texts":
            return {
                "prompts": [""] * self.samples.num_samples,
                "new_tokens": self.samples.length,
                "batch_size": self.samples.batch_size,
                "seed": self.samples.seed,
            }
        return {
            "prompts": self.continuations.prompts(self.passages),
            "new_tokens": self.continuations.length,
            "batch_size": self.continuations.batch_size,
            "seed": self.samples.seed,
        }

    def identities(self) -> dict[str, Any]:
        """Return what decides the values of a measurement, by the names in `Measurement.settings`."""
        return {
            "judge": weights_of(self.judge_name),
            "after_end": self.after_end,
            "featurizer": weights_of(self.featurizer),
            "held_out": [self.held_out.corpus.identity, asdict(self.held_out)],
            "passages": digest_of([asdict(passage) for passage in self.passages]),
            "cloze": digest_of([*self.cloze, self.samples.seed]),
        }


def weights_of(name: str) -> str:
    """Return a hash of a checkpoint's weights; of a name with none on this machine, the name."""
    path = Path(resolve(name))
    return weights_hash(path) if path.is_dir() else name


def weights_of_model(name: str) -> str:
    """Return a hash of the weights of a model that is loaded, from a directory or the hub's cache."""
    path = Path(resolve(name))
    if not path.is_dir():
        path = Path(snapshot_download(name, allow_patterns="*.safetensors", local_files_only=True))
    return weights_hash(path)
