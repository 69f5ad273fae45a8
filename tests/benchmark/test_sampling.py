"""`bench sampling`: a real run of a tiny model, its numbers, and what it refuses."""

from typing import Any

import pytest
import torch

from fewstep import seeds
from fewstep.benchmark import networks, sampling
from fewstep.benchmark.plain_code import load_plain
from fewstep.benchmark.sampling import SCHEDULE, SamplingSettings, run_sampling, works
from fewstep.benchmark.timing import Timing
from fewstep.sampling.loop import unmask_in_steps
from fewstep.sampling.samplers import sampler_named


def settings(**changed: Any) -> SamplingSettings:
    chosen: dict[str, Any] = {
        "shape": "nano", "length": 16, "steps": (2, 4), "batch": 2, "cache_refresh": 3, "repeats": 2,
        "seed": 0, "device": "cpu",
    }  # fmt: skip
    return SamplingSettings(**chosen | changed)


@pytest.mark.usefixtures("nano")
def test_a_real_run() -> None:
    lines: list[str] = []
    result = run_sampling(settings(), lines.append)
    assert [row["steps"] for row in result["rows"]] == [2, 4]
    for row in result["rows"]:
        seconds = row["seconds"]
        assert row["speedup"] == seconds["plain"] / seconds["uncached"]
        assert row["speedup_cached"] == seconds["plain"] / seconds["cached"]
        assert row["tokens_per_second"]["plain"] == pytest.approx(32 / seconds["plain"])
        for side, (least, most) in row["spread"].items():
            assert least <= seconds[side] <= most
    for key in ("speedup", "speedup_cached"):
        assert result[key] == min(row[key] for row in result["rows"])
    assert set(result["peak_bytes"]) == {"plain", "uncached", "cached"}
    assert result["settings"]["cache_refresh"] == 3
    assert result["machine"]["bandwidth"] > 0
    assert len(lines) == 3


@pytest.mark.usefixtures("nano")
def test_rows_are_ratios_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = iter(
        {"plain": Timing((12.0, 8.0)), "uncached": Timing((ours, ours)), "cached": Timing((cached,))}
        for ours, cached in ((4.0, 1.0), (2.0, 5.0))
    )
    monkeypatch.setattr(sampling, "in_turn", lambda *_, **__: next(timings))
    monkeypatch.setattr(sampling, "describe", lambda _: {})
    result = run_sampling(settings(), lambda _: None)
    assert [(row["speedup"], row["speedup_cached"]) for row in result["rows"]] == [(2.5, 10.0), (5.0, 2.0)]
    assert (result["speedup"], result["speedup_cached"]) == (2.5, 2.0)
    assert result["rows"][0]["tokens_per_second"] == {"plain": 3.2, "uncached": 8.0, "cached": 32.0}


@pytest.mark.usefixtures("nano")
def test_each_side_writes_whole_texts_by_its_own_sampler() -> None:
    denoiser = networks.new_denoiser("nano", torch.device("cpu"))
    denoiser.folded()
    chosen = settings(length=32)
    written = {
        name: work() for name, work in works(denoiser, load_plain("sampling"), chosen, num_steps=8).items()
    }
    for tokens_BL in written.values():
        assert tokens_BL.shape == (2, 32)
        assert (tokens_BL < 29).all()
    for name, cache_refresh in (("uncached", 1), ("cached", 3)):
        *_, last = unmask_in_steps(
            denoiser, torch.full((2, 32), 29), num_steps=8, sampler=sampler_named("ancestral"),
            schedule=SCHEDULE, generators=seeds.sequence_generators(0, count=2), cache_refresh=cache_refresh,
        )  # fmt: skip
        assert torch.equal(written[name], last.tokens_BL)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": "huge"}, "there is no shape 'huge'; choose one of "),
        ({"length": 33}, "length is 33; the models take 1 to 32 tokens"),
        ({"steps": (4, 0)}, "steps is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"cache_refresh": -2}, "cache_refresh is -2; "),
        ({"cache_refresh": 1}, "cache_refresh is 1, which is the uncached sampler; "),
        ({"device": "tpu"}, "device is 'tpu'; "),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        settings(**changed)
    assert str(refusal.value).startswith(message)


@pytest.mark.usefixtures("nano")
def test_what_cannot_fit_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "available_bytes", lambda _: 2**20)
    monkeypatch.setattr(networks, "new_denoiser", None)
    with pytest.raises(ValueError, match="nano at batch 2 and length 16 needs about"):
        run_sampling(settings(), lambda _: None)
