"""Texts that a model writes once and every metric reads, kept with what they were made by.

    output/samples/NAME-DIGEST/manifest.json     all that decides the texts; DIGEST is its hash
                               batch-00000.json   texts, tokens and seconds of a batch

A set of other settings has another digest, so that a set is never taken for another. A batch is written
beside its place and renamed: what was interrupted goes on with the batches that are missing, and several
processes write the batches of one set between them.
"""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fewstep
from fewstep.data.encoding import tokenizer_hash
from fewstep.evaluation.processes import Share, wait_for
from fewstep.sampling.constraints import encode, equal_length_batches
from fewstep.sampling.samplers import SamplerName
from fewstep.sampling.text_model import TextModel

WARM_UP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How many texts a row rests on, and how they are made."""

    num_samples: int = 8
    """Texts of each row."""
    batch_size: int = 4
    """Texts made, and timed, together."""
    length: int = 256
    """Tokens of each text."""
    seed: int = 0
    """Batch b of a row draws with the seed `seed` * batches + b."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_samples < 1:
            raise ValueError(
                f"num_samples is {self.num_samples} and batch_size {self.batch_size}; both must be at least 1"
            )
        if self.num_samples % self.batch_size:
            raise ValueError(
                f"num_samples {self.num_samples} is no multiple of batch_size {self.batch_size}, so batches "
                "would differ in time; choose one that is"
            )

    @property
    def batch_seeds(self) -> range:
        """The seed of each batch; those of different `seed`s never meet."""
        num_batches = self.num_samples // self.batch_size
        return range(self.seed * num_batches, (self.seed + 1) * num_batches)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model writes; steps, refresh interval and sampler are None for an autoregressive one."""

    steps: int | None
    cache_refresh: int | None
    sampler: SamplerName | None = None
    temperature: float = 1.0
    top_p: float = 1.0

    def passes(self, num_tokens: int) -> int:
        """Return the most forward passes that a text of `num_tokens` new tokens takes."""
        return num_tokens if self.steps is None else self.steps


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Texts made together: what the model wrote behind each prompt, and what that cost."""

    texts: list[str]
    tokens: list[list[int]]
    seconds: float
    num_forwards: int
    full_passes: float


def write_batch(
    model: TextModel, sampling: Sampling, prompts: Sequence[str], new_tokens: int, seed: int
) -> Batch:
    """Return `new_tokens` tokens behind each of `prompts`, which are equally long, and their time."""
    prompt_length = len(encode(model.tokenizer, prompts[0]))
    started = time.perf_counter()
    made = model.generate(
        prompt=list(prompts),
        length=prompt_length + new_tokens,
        num_steps=sampling.steps,
        sampler=sampling.sampler,
        cache_refresh=1 if sampling.cache_refresh is None else sampling.cache_refresh,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        batch_size=len(prompts),
    )
    seconds = time.perf_counter() - started
    tokens = [ids[prompt_length:] for ids in made.tokens]
    return Batch(
        texts=[model.decode(ids) for ids in tokens],
        tokens=tokens,
        seconds=seconds,
        num_forwards=made.num_forwards,
        full_passes=made.full_passes,
    )


def warm_up(model: TextModel, prompts: Sequence[str], new_tokens: int) -> None:
    """Write a batch that nobody reads, so that the first one that is timed meets a warm model."""
    short = Sampling(steps=WARM_UP_STEPS if model.is_denoiser else None, cache_refresh=None)
    write_batch(model, short, prompts, new_tokens, seed=0)


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """The texts of one model written in one way, on disk, finished or not."""

    directory: Path
    manifest: Mapping[str, Any]
    sampling: Sampling
    prompts: tuple[str, ...]
    """One for each text; empty where it begins with nothing."""
    new_tokens: int
    batches: tuple[tuple[int, ...], ...]
    """The texts of each batch."""
    seed: int

    @property
    def digest(self) -> str:
        """The hash of the manifest."""
        return digest_of(self.manifest)

    def path(self, batch: int) -> Path:
        """The file of a batch."""
        return self.directory / f"batch-{batch:05}.json"

    def missing(self, share: Share) -> list[int]:
        """Return the batches that this process still has to write."""
        return [b for b in range(len(self.batches)) if share.is_mine(b) and not self.path(b).exists()]

    def missing_passes(self, share: Share) -> int:
        """Return the forward passes that those batches take."""
        return len(self.missing(share)) * self.sampling.passes(self.new_tokens)

    def write(self, model: TextModel, share: Share, done: Callable[[int], None]) -> None:
        """Write the batches that are missing; call `done` with the passes of each.

        Raises:
            ValueError: if the model cannot write such texts.
        """
        missing = self.missing(share)
        if not missing:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_json(self.directory / "manifest.json", self.manifest)
        warm_up(model, [self.prompts[i] for i in self.batches[missing[0]]], self.new_tokens)
        for number in missing:
            prompts = [self.prompts[index] for index in self.batches[number]]
            seed = self.seed * len(self.batches) + number
            batch = write_batch(model, self.sampling, prompts, self.new_tokens, seed)
            replace_json(self.path(number), asdict(batch))
            done(self.sampling.passes(self.new_tokens))

    def first_text(self) -> str:
        """Return the first text; empty if it was never written."""
        return read_json(self.path(0))["texts"][0] if self.path(0).exists() else ""

    def read(self) -> "Written":
        """Return the finished texts, waiting for those that other processes write.

        Raises:
            ValueError: if a file is damaged.
        """
        batches = []
        for number, indices in enumerate(self.batches):
            wait_for(self.path(number))
            batch = Batch(**read_json(self.path(number)))
            if len(batch.texts) != len(indices):
                raise ValueError(f"{self.path(number)} is damaged; delete it, and it is made again")
            batches.append(batch)
        places = [(index, b, i) for b, indices in enumerate(self.batches) for i, index in enumerate(indices)]
        places.sort()
        return Written(
            texts=tuple(batches[b].texts[i] for _, b, i in places),
            tokens=tuple(tuple(batches[b].tokens[i]) for _, b, i in places),
            seconds_per_sample=statistics.median(batch.seconds / len(batch.texts) for batch in batches),
            num_forwards=max(batch.num_forwards for batch in batches),
            full_passes=statistics.fmean(batch.full_passes for batch in batches),
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a sample set holds: the new text and tokens of each sample, without its prompt."""

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    seconds_per_sample: float
    """Median over batches of a batch's seconds over its texts."""
    num_forwards: int
    """Forward passes of the slowest batch."""
    full_passes: float
    """Positions computed for a text, over its length, on average."""


def sample_set(
    output: Path,
    model: TextModel,
    *,
    name: str,
    weights: str,
    sampling: Sampling,
    prompts: Sequence[str],
    new_tokens: int,
    batch_size: int,
    seed: int,
) -> SampleSet:
    """Return the set of these settings under `output`, of which nothing, some or all is written.

    Args:
        output: Directory of the evaluation.
        model: Who writes.
        name: What its files are called.
        weights: Hash of the model's weights.
        sampling: How it writes.
        prompts: One for each text; "" to begin with nothing.
        new_tokens: Tokens that it writes behind each prompt.
        batch_size: Texts made together, of prompts of as many tokens.
        seed: Batch b draws with `seed` * batches + b.
    """
    encoded = [torch.tensor(encode(model.tokenizer, prompt)) for prompt in prompts]
    manifest = {
        **identity_of(model, weights),
        **asdict(sampling),
        "num_samples": len(prompts),
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "prompts": digest_of(list(prompts)),
        "seed": seed,
    }
    steps = "" if sampling.steps is None else f"-{sampling.steps}-steps"
    return SampleSet(
        directory=output / "samples" / f"{Path(name).name}{steps}-{digest_of(manifest)}",
        manifest=manifest,
        sampling=sampling,
        prompts=tuple(prompts),
        new_tokens=new_tokens,
        batches=tuple(tuple(batch) for batch in equal_length_batches(encoded, batch_size)),
        seed=seed,
    )


def identity_of(model: TextModel, weights: str) -> dict[str, Any]:
    """Return all of a model that decides what it writes, in a form that JSON can write."""
    parameter = next(model.network.parameters())
    return {
        "fewstep": fewstep.__version__,
        "weights": weights,
        "tokenizer": tokenizer_hash(model.tokenizer),
        "schedule": model.manifest.get("schedule"),
        "precision": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
    }


def digest_of(value: Any) -> str:
    """Return a short hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def replace_json(path: Path, value: Any) -> None:
    """Write `value` to `path` in one piece, whichever process comes first."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    """Return what a file of ours holds.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
