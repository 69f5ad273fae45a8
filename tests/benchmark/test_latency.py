"""`bench latency`: a real run of a tiny model, the sums behind its rows, going on, and refusals."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.benchmark import denoising, latency, latency_cell, networks
from fewstep.benchmark.autoregressive import integrated
from fewstep.benchmark.denoising import StepsOfDenoiser, full_weights
from fewstep.benchmark.latency import run_latency
from fewstep.benchmark.latency_cell import Cell
from fewstep.benchmark.latency_settings import LatencySettings, keys_of
from fewstep.benchmark.measured_rows import MeasuredRows
from fewstep.benchmark.plot import plot_latency
from fewstep.benchmark.timing import Timing

CPU = torch.device("cpu")
PNG = b"\x89PNG\r\n\x1a\n"


def settings(**changed: Any) -> LatencySettings:
    chosen: dict[str, Any] = {
        "shapes": ("nano",), "batches": (1, 2), "steps": (2, 8), "cache_refresh": (1, 3, 0), "length": 16,
        "timed_tokens": 2, "repeats": 1, "max_seconds": 60.0, "check": False, "seed": 0, "device": "cpu",
    }  # fmt: skip
    return LatencySettings(**chosen | changed)


def cell(**changed: Any) -> Cell:
    return Cell(settings(**changed), "nano", 2, *networks.new_pair("nano", CPU))


def steps_of(batch: int, length: int = 16) -> StepsOfDenoiser:
    denoiser, _ = networks.new_pair("nano", CPU)
    return StepsOfDenoiser(denoiser, batch=batch, length=length, seed=0)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as anything is measured."""
    monkeypatch.setattr(networks, "new_pair", None)


def number_of_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.usefixtures("nano")
def test_a_real_run(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_latency(settings(check=True), lines.append, MeasuredRows(tmp_path / "rows.jsonl"))
    found = [(row["batch"], row["cache_refresh"], row["steps"]) for row in result["rows"]]
    one_batch = [(None, None), (1, 2), (1, 8), (3, 2), (3, 8), (0, 2), (0, 8)]
    assert found == [(batch, *key) for batch in (1, 2) for key in one_batch]
    for row in result["rows"]:
        assert row["tokens_per_second"] == pytest.approx(16 * row["batch"] / row["seconds"])
        assert row["roofline_seconds"] > 0
        if row["steps"] is not None:
            passes, seconds = row["passes"], row["pass_seconds"]
            assert sum(passes.values()) == row["steps"]
            assert row["seconds"] == pytest.approx(sum(passes[kind] * seconds[kind] for kind in passes))
    first, *_ = result["rows"]
    assert first["cache_lengths"] == [1, 4, 7, 11, 14]
    assert len(first["hf_tokens_per_second_at"]) == len(first["tokens_per_second_at"]) == 5
    assert first["hf_tokens_per_second"] > 0
    assert result["rows"][7]["hf_note"] == "measured at the smallest batch only"
    checked = [(row["steps"], row["cache_refresh"]) for row in result["check"]["rows"]]
    assert checked == [(None, None), (8, 1), (8, 3), (8, 0)]
    for row in result["check"]["rows"]:
        assert row["ratio"] == row["integrated_seconds"] / row["full_seconds"]
        assert 0.02 < row["ratio"] < 50
    assert sum("tokens/s" in line for line in lines) == number_of_lines(tmp_path / "rows.jsonl") == 14


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("num_steps", "asked", "partial"),
    [(1, 15, None), (2, 8, 16), (4, 4, 8), (5, 3, 7), (8, 2, 4), (15, 1, 3), (16, 1, 2)],
)
def test_timed_steps_are_what_their_names_say(
    batch: int, num_steps: int, asked: int, partial: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 steps on 16 positions, 2 unmask each: full steps compute 16 of each text, partial ones 4.

    15 of 16 are left to a single step, and 5 steps, of which the first has unmasked 4, share 12.
    """
    steps = steps_of(batch)
    inputs, rows = [], []
    run, hidden = steps.denoiser.backbone.run, steps.denoiser.hidden

    def spied_run(embedded, *rest):
        inputs.append(embedded.shape[:-1].numel())
        return run(embedded, *rest)

    def spied_hidden(tokens_BL, asked_BL, cache):
        rows.append(asked_BL.sum(1).tolist())
        return hidden(tokens_BL, asked_BL, cache)

    monkeypatch.setattr(steps.denoiser.backbone, "run", spied_run)
    monkeypatch.setattr(steps.denoiser, "hidden", spied_hidden)
    for _ in range(2):  # what ran before does not matter
        kinds = [(steps.full_seconds, 16)] + ([] if partial is None else [(steps.partial_seconds, partial)])
        for seconds, computed in kinds:
            before = steps.cache.positions_computed
            assert seconds(num_steps) > 0
            assert steps.cache.positions_computed - before == batch * computed
            assert inputs.pop() == batch * computed  # equal texts would be computed once
            assert rows.pop() == [asked] * batch
    assert not inputs and not rows


@pytest.mark.usefixtures("nano")
def test_partial_steps_need_no_full_one_before_them() -> None:
    steps = steps_of(2)
    assert torch.isfinite(steps.cache.storage).all()
    steps.partial_seconds(8)
    assert steps.cache.positions_computed == 2 * 4


@pytest.mark.usefixtures("nano")
def test_the_warm_up_is_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "WARM_UP_LENGTH", 8)
    steps = steps_of(2)
    shapes = []
    hidden = steps.denoiser.hidden

    def spied(tokens_BL, asked_BL, cache):
        shapes.append(tuple(tokens_BL.shape))
        return hidden(tokens_BL, asked_BL, cache)

    monkeypatch.setattr(steps.denoiser, "hidden", spied)
    steps.warm_up()
    assert shapes == [(2, 8)] * 4
    assert steps.cache.positions_computed == 0


@pytest.mark.usefixtures("nano")
def test_texts_of_a_batch_begin_with_their_own_token() -> None:
    denoiser, _ = networks.new_pair("nano", CPU)
    assert denoising.canvas(denoiser, batch=2, length=3).tolist() == [[0, 29, 29], [1, 29, 29]]
    many = denoising.canvas(denoiser, batch=30, length=3, num_given=2)
    assert many[:, 0].tolist() == [*range(29), 0]
    assert many[:, 1:].tolist() == [[0, 29]] * 30


def test_the_full_step_between_two_timed_ones_is_linear_in_what_it_unmasks() -> None:
    # Of 1024 positions, 8 steps unmask 128 each, 16 64, 32 32 and 64 16.
    assert full_weights(8, (8, 64)) == {8: 1}
    assert full_weights(16, (8, 64)) == pytest.approx({8: 48 / 112, 64: 64 / 112})
    assert full_weights(32, (8, 64)) == pytest.approx({8: 16 / 112, 64: 96 / 112})
    assert full_weights(64, (8, 64)) == {64: 1}
    assert full_weights(8, (8, 8)) == {8: 1}


@pytest.mark.usefixtures("nano")
def test_rows_are_sums_over_steps_and_tokens() -> None:
    timings = {
        "full@2": Timing((5.0, 3.0, 10.0)),
        "full@8": Timing((1.0, 3.0)),
        "partial@4": Timing((0.5, 0.25, 0.75)),
        "partial@8": Timing((0.125, 0.25, 0.375)),
        **{f"ar@{start}": Timing((0.1 * start,)) for start in (1, 4, 7, 11, 14)},
        **{f"hf@{start}": Timing((0.2 * start,)) for start in (1, 4, 7, 11, 14)},
    }
    measuring = cell(steps=(2, 4, 8))
    assert measuring.diffusion_row(timings, 8, 1, (2, 8))["seconds"] == 8 * 2.0
    row = measuring.diffusion_row(timings, 8, 3, (2, 8))
    assert row["seconds"] == 3 * 2.0 + 5 * 0.25
    assert row["spread"] == [3 * 1.0 + 5 * 0.125, 3 * 3.0 + 5 * 0.375]
    assert row["repeats"] == 2
    assert row["tokens_per_second"] == 2 * 16 / 7.25
    assert row["passes"] == {"full": 3, "partial": 5}
    assert row["pass_seconds"] == {"full": 2.0, "partial": 0.25}
    # 4 steps unmask 4 positions each, a third of the way from the 2 of 8 steps to the 8 of 2 steps.
    between = measuring.diffusion_row(timings, 4, 3, (2, 8))
    assert between["pass_seconds"] == pytest.approx({"full": 3.0, "partial": 0.5})
    assert between["seconds"] == pytest.approx(2 * 3.0 + 2 * 0.5)
    assert between["spread"] == pytest.approx(
        [2 * (3 + 2 * 1) / 3 + 2 * 0.25, 2 * (10 + 2 * 3) / 3 + 2 * 0.75]
    )
    assert between["repeats"] == 2
    assert measuring.diffusion_row(timings, 4, 0, (2, 8))["seconds"] == pytest.approx(3.0 + 3 * 0.5)
    assert measuring.diffusion_row(timings, 4, 1, (2, 8))["passes"] == {"full": 4}
    whole = integrated([1, 4, 7, 11, 14], [0.1, 0.4, 0.7, 1.1, 1.4], timed_tokens=2, length=16)
    ours = measuring.autoregressive_row(timings, None)
    assert (ours["steps"], ours["cache_refresh"]) == (None, None)
    assert ours["seconds"] == pytest.approx(whole)
    assert ours["hf_tokens_per_second"] == pytest.approx(2 * 16 / (2 * whole))
    assert ours["tokens_per_second_at"][0] == pytest.approx(2 * 2 / 0.1)
    assert measuring.autoregressive_row(timings, "no room")["hf_tokens_per_second"] is None


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"steps": (8, 2, 4)}, ["full@2", "full@8", "partial@2", "partial@4", "partial@8"]),
        ({"steps": (1, 4)}, ["full@1", "full@4", "partial@4"]),
        ({"steps": (1,)}, ["full@1"]),
        ({"steps": (4,)}, ["full@4", "partial@4"]),
        ({"steps": (2, 8), "cache_refresh": (1,)}, ["full@2", "full@8"]),
        ({"steps": (2, 8), "cache_refresh": (0,)}, ["full@2", "full@8", "partial@2", "partial@8"]),
    ],
)
def test_both_sides_of_a_cell_are_taken_in_turn(
    changed: dict[str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def spied(tasks, **options):
        order.extend(name for task in tasks for name in task())
        assert len(options["warm_up"]) == 2
        assert options["warm_up"][1].__func__ is StepsOfDenoiser.warm_up
        assert options["max_seconds"] == 60
        return {name: Timing((1.0,)) for name in order}

    monkeypatch.setattr(latency_cell, "in_turn", spied)
    chosen = settings(batches=(1, 2), **changed)
    measuring = Cell(chosen, "nano", 2, *networks.new_pair("nano", CPU))
    keys = [key for key in keys_of(chosen, "nano") if key["batch"] == 2]
    rows = measuring.rows(keys, lambda _: None)
    assert order == [*(f"ar@{start}" for start in (1, 4, 7, 11, 14)), *names]
    assert [row["seconds"] for row in rows[1:]] == pytest.approx([key["steps"] for key in keys[1:]])


@pytest.mark.usefixtures("nano")
def test_a_full_run_begins_with_a_token_and_masks() -> None:
    """Of 15 masks, 8 steps unmask 1 and then 2 each; a partial step computes what the last one wrote, too."""
    for cache_refresh, computed in ((1, [32] * 8), (0, [32, 6] + [8] * 6), (3, [32, 6, 8, 32, 8, 8, 32, 8])):
        done = [0, *(progress.positions_computed for progress in cell().unmasking(8, cache_refresh))]
        assert [after - before for before, after in pairwise(done)] == computed


@pytest.mark.usefixtures("nano")
def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    run_latency(settings(batches=(1,)), lambda _: None, MeasuredRows(path))
    whole = path.read_text()
    kept = whole.splitlines()[:3]
    path.write_text("\n".join([*kept, whole.splitlines()[3][:40]]))  # killed in the middle of a line
    lines: list[str] = []
    result = run_latency(settings(batches=(1,)), lines.append, MeasuredRows(path))
    assert sum("tokens/s" in line for line in lines) == 4
    for row, line in zip(result["rows"], kept, strict=False):
        assert row["seconds"] == json.loads(line)["row"]["seconds"]
    monkeypatch.setattr(networks, "new_pair", None)
    again = run_latency(settings(batches=(1,)), lines.append, MeasuredRows(path))
    assert [row["seconds"] for row in again["rows"]] == [row["seconds"] for row in result["rows"]]
    with pytest.raises(TypeError):  # other settings are measured anew, for which there is no network here
        run_latency(settings(batches=(1,), length=12), lines.append, MeasuredRows(path))


@pytest.mark.usefixtures("nano", "stopped")
def test_what_cannot_fit_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "available_bytes", lambda _: 2**20)
    with pytest.raises(ValueError) as refusal:
        run_latency(settings(), lambda _: None)
    assert str(refusal.value) == (
        "nano at batch 2 and length 16 needs about 0.5 GB of memory and 0.0 GB are free; "
        "choose smaller batches, or leave the shape out"
    )


@pytest.mark.usefixtures("nano")
def test_gpt2_is_left_out_where_it_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_cell, "available_bytes", lambda _: 2**20)
    measuring = Cell(settings(), "nano", 1, *networks.new_pair("nano", CPU))
    note = measuring.why_no_gpt2()
    assert note == "needs about 0.5 GB more, and 0.0 GB are free"
    (row,) = measuring.rows([keys_of(settings(), "nano")[0]], lambda _: None)
    assert row["hf_note"] == note
    assert row["hf_tokens_per_second"] is None


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shapes": ("nano", "huge")}, "there is no shape 'huge'; choose one of "),
        ({"shapes": ()}, "shapes or cache_refresh is empty; "),
        ({"length": 33}, "length is 33; the models take 1 to 32 tokens"),
        ({"length": 3, "steps": (2,)}, "length is 3 and timed_tokens 2; "),
        ({"steps": (0,)}, "steps is 0; it must be at least 1"),
        ({"steps": (17,)}, "steps is 17 and length 16; "),
        ({"batches": (1, 0)}, "batches is 0; it must be at least 1"),
        ({"cache_refresh": (1, -1)}, "cache_refresh is -1; "),
        ({"timed_tokens": 0}, "timed_tokens is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        settings(**changed)
    assert str(refusal.value).startswith(message)


@pytest.mark.usefixtures("nano")
def test_the_plot_has_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, list[float]]] = []
    plot = Axes.plot

    def spied(axes: Axes, names: list[str], values: list[float], **style: Any):
        drawn.append((style["label"], values))
        return plot(axes, names, values, **style)

    monkeypatch.setattr(Axes, "plot", spied)
    rows = [
        {**key, "tokens_per_second": float(place), "parameters": 7_000_000}
        for place, key in enumerate(keys_of(settings(), "nano"), start=1)
    ]
    plot_latency(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert drawn == [
        (label, [float(value)])
        for first in (1, 8)
        for panel in (1, 3, 5)
        for label, value in (
            ("autoregressive", first), ("2 steps", first + panel), ("8 steps", first + panel + 1)
        )
    ]  # fmt: skip


def test_estimates_follow_the_rows(nano: str) -> None:
    machine = {"bandwidth": 1e3, "throughput": 1e12}
    weights = networks.sizes_of(nano, CPU)
    read = 4 * (2 * weights.block_weights + weights.head_weights) / 1e3
    row = {"model": nano, "batch": 1, "steps": 8, "cache_refresh": 1}
    uncached = latency.estimates(settings(), row, machine)
    assert uncached["roofline_seconds"] == pytest.approx(8 * read)
    assert uncached["parameters"] == networks.num_parameters(nano)
    token = latency.estimates(settings(), row | {"steps": None, "cache_refresh": None}, machine)
    keys_and_values = 4 * 2 * 2 * 16 * sum(range(1, 17)) / 1e3
    assert token["roofline_seconds"] == pytest.approx(16 * read + keys_and_values)
