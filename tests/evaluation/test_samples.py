"""Sample sets: the texts are those of `generate`, written once, whoever writes them and however often."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation.processes import Share
from fewstep.evaluation.samples import SampleSet, Sampling, sample_set
from fewstep.sampling.text_model import TextModel, load
from tests.evaluation.tiny_models import save_tiny_models

ALONE = Share()
WAY = Sampling(steps=4, cache_refresh=1, temperature=0.8)


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[str, TextModel]:
    paths = save_tiny_models(tmp_path_factory.mktemp("models"), tokenizer)
    return {name: load(paths[name]) for name in ("denoiser", "autoregressive")}


def plan(output: Path, model: TextModel, **changed: Any) -> SampleSet:
    settings: dict[str, Any] = {
        "name": "runs/tiny", "weights": "w", "sampling": WAY, "prompts": [""] * 6, "new_tokens": 10,
        "batch_size": 2, "seed": 3,
    }  # fmt: skip
    return sample_set(output, model, **settings | changed)


def written(samples: SampleSet, model: TextModel, share: Share = ALONE) -> list[int]:
    """Write what is missing; return the passes reported."""
    passes: list[int] = []
    samples.write(model, share, passes.append)
    return passes


def test_texts_are_those_of_generate(models: dict[str, TextModel], tmp_path: Path) -> None:
    for name, way in (
        ("denoiser", WAY),
        ("autoregressive", replace(WAY, steps=None, cache_refresh=None, top_p=0.9)),
    ):
        model = models[name]
        samples = plan(tmp_path, model, sampling=way)
        assert sum(written(samples, model)) == samples.sampling.passes(10) * 3
        found = samples.read()
        made = [
            model.generate(2, length=10, num_steps=way.steps, temperature=0.8, top_p=way.top_p, seed=seed)
            for seed in (9, 10, 11)  # seed 3 of 3 batches
        ]
        assert found.tokens == tuple(tuple(ids) for one in made for ids in one.tokens)
        assert found.texts == tuple(text for one in made for text in one.texts)
        assert found.num_forwards == max(one.num_forwards for one in made)
        assert found.seconds_per_sample > 0


def test_continuations_are_what_follows_prompts_of_any_length(
    models: dict[str, TextModel], tmp_path: Path
) -> None:
    model = models["denoiser"]
    prompts = ["We hold", "The state of the union", "We hold", "Commerce, peace", "We hold"]
    samples = plan(tmp_path, model, prompts=prompts, new_tokens=6)
    written(samples, model)
    found = samples.read()
    lengths = [len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    for batch, indices in enumerate(samples.batches):
        assert len({lengths[index] for index in indices}) == 1
        made = model.generate(
            prompt=[prompts[index] for index in indices], length=lengths[indices[0]] + 6, num_steps=4,
            temperature=0.8, seed=3 * len(samples.batches) + batch,
        )  # fmt: skip
        for index, ids in zip(indices, made.tokens, strict=True):
            assert found.tokens[index] == tuple(ids[lengths[index] :])
            assert prompts[index] + found.texts[index] == model.decode(ids)


def test_only_missing_batches_are_written_again(models: dict[str, TextModel], tmp_path: Path) -> None:
    model = models["denoiser"]
    samples = plan(tmp_path, model)
    written(samples, model)
    before = samples.read()
    kept = samples.path(0).read_bytes()
    samples.path(1).unlink()
    assert (samples.missing(ALONE), samples.missing_passes(ALONE)) == ([1], 4)
    assert written(samples, model) == [4]
    assert samples.read().tokens == before.tokens
    assert samples.path(0).read_bytes() == kept
    assert written(samples, model) == []


def test_processes_share_the_batches_and_write_the_same(models: dict[str, TextModel], tmp_path: Path) -> None:
    model = models["denoiser"]
    alone, shared = plan(tmp_path / "alone", model), plan(tmp_path / "shared", model)
    written(alone, model)
    assert len(written(shared, model, Share(0, 2))) == 2
    assert [shared.path(batch).exists() for batch in range(3)] == [True, False, True]
    assert len(written(shared, model, Share(1, 2))) == 1
    assert shared.read().tokens == alone.read().tokens


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": "other"},
        {"sampling": replace(WAY, steps=5)},
        {"sampling": replace(WAY, temperature=0.9)},
        {"sampling": replace(WAY, cache_refresh=2)},
        {"sampling": replace(WAY, top_p=0.9)},
        {"sampling": replace(WAY, sampler="confidence")},
        {"prompts": ["", "", "", "", "", "We"]},
        {"prompts": [""] * 5},
        {"new_tokens": 11},
        {"batch_size": 3},
        {"seed": 4},
    ],
)
def test_what_decides_the_texts_decides_the_directory(
    models: dict[str, TextModel], tmp_path: Path, changed: dict[str, Any]
) -> None:
    model = models["denoiser"]
    first, other = plan(tmp_path, model), plan(tmp_path, model, **changed)
    assert first.directory == plan(tmp_path, model).directory
    assert first.directory != other.directory
    written(first, model)
    assert other.missing(ALONE) == list(range(len(other.batches)))
    manifest = json.loads((first.directory / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("weights", "steps", "temperature", "seed", "precision")} == {
        "weights": "w", "steps": 4, "temperature": 0.8, "seed": 3, "precision": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content", ["{", '{"texts": [], "tokens": [], "seconds": 1, "num_forwards": 1, "full_passes": 1}']
)
def test_a_damaged_batch_is_named(models: dict[str, TextModel], tmp_path: Path, content: str) -> None:
    model = models["denoiser"]
    samples = plan(tmp_path, model)
    written(samples, model)
    samples.path(1).write_text(content)
    with pytest.raises(ValueError, match=r"batch-00001\.json is damaged.*delete it, and it is made again"):
        samples.read()


def test_a_failed_write_leaves_no_batch(models: dict[str, TextModel], tmp_path: Path) -> None:
    model = models["denoiser"]
    samples = plan(tmp_path, model, new_tokens=25)
    with pytest.raises(ValueError, match="length is 25; this model writes 1 to 24 tokens"):
        written(samples, model)
    assert samples.missing(ALONE) == [0, 1, 2]
