"""`bench distill`: a real run of a tiny model, the same batches on both sides, and what it refuses."""

import copy
from typing import Any

import pytest
import torch

from fewstep.benchmark import distillation, networks
from fewstep.benchmark.distillation import Contest, DistillSettings, run_distill
from fewstep.benchmark.plain_code import load_plain
from fewstep.benchmark.timing import Timing

CPU = torch.device("cpu")


def settings(**changed: Any) -> DistillSettings:
    chosen: dict[str, Any] = {
        "shape": "nano", "lengths": (8, 16), "tokens": 32, "teacher_steps": 2,
        "activation_checkpointing": False, "repeats": 2, "seed": 0, "device": "cpu",
    }  # fmt: skip
    return DistillSettings(**chosen | changed)


def contest(length: int = 32, **changed: Any) -> Contest:
    teacher = networks.new_denoiser("nano", CPU).requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    with torch.no_grad():
        student.output_head.weight.mul_(3)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    return Contest(teacher, student, optimizer, load_plain("distill"), settings(**changed), length)


@pytest.mark.usefixtures("nano")
def test_a_real_run() -> None:
    lines: list[str] = []
    result = run_distill(settings(), lines.append)
    assert [row["length"] for row in result["rows"]] == [8, 16]
    for row in result["rows"]:
        assert row["speedup"] == row["seconds"]["plain"] / row["seconds"]["ours"]
        assert row["training_steps_per_second"]["ours"] == 1 / row["seconds"]["ours"]
        assert set(row["peak_bytes"]) == {"plain", "ours"}
    assert result["speedup"] == min(row["speedup"] for row in result["rows"])
    assert result["settings"]["teacher_steps"] == 2
    assert len(lines) == 3


@pytest.mark.usefixtures("nano")
def test_the_whole_takes_the_worst_length(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = iter({"ours": Timing((ours,)), "plain": Timing((6.0,))} for ours in (3.0, 1.0))
    peaks = iter([100, 1000, 450, 500])
    monkeypatch.setattr(distillation, "in_turn", lambda *_, **__: next(timings))
    monkeypatch.setattr(distillation, "peak_above", lambda *_: next(peaks))
    monkeypatch.setattr(distillation, "describe", lambda _: {})
    result = run_distill(settings(), lambda _: None)
    assert [(row["speedup"], row["memory_ratio"]) for row in result["rows"]] == [(2.0, 0.1), (6.0, 0.9)]
    assert (result["speedup"], result["memory_ratio"]) == (2.0, 0.9)


@pytest.mark.usefixtures("nano")
def test_both_sides_see_the_same_batches_and_train_the_student() -> None:
    sides = contest()
    batches = {side: [sides.batch(side) for _ in range(3)] for side in ("ours", "plain")}
    for ours, plain in zip(*batches.values(), strict=True):
        assert torch.equal(ours["corrupted"], plain["corrupted"])
        assert torch.equal(ours["times"], plain["times"])
    assert not torch.equal(batches["ours"][0]["corrupted"], batches["ours"][1]["corrupted"])
    for work in sides.works.values():
        before = sides.student.output_head.weight.detach().clone()
        frozen = sides.teacher.output_head.weight.clone()
        work()
        assert not torch.equal(before, sides.student.output_head.weight)
        assert torch.equal(frozen, sides.teacher.output_head.weight)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize("asked", [False, True])
def test_only_ours_checkpoints_activations(asked: bool) -> None:
    sides = contest(activation_checkpointing=asked)
    for side, expected in (("ours", asked), ("plain", False), ("ours", asked)):
        sides.works[side]()
        assert sides.student.backbone.activation_checkpointing is expected


@pytest.mark.usefixtures("nano")
def test_the_gradients_of_both_sides_are_close() -> None:
    """The teacher barely unmasks in steps of 1 / 1024, so both have nearly the same targets."""
    gradients = []
    for side in ("ours", "plain"):
        torch.manual_seed(0)
        sides = contest()
        sides.works[side]()
        gradients.append(sides.student.output_head.weight.grad)
    ours, plain = gradients
    assert ours is not None
    assert plain is not None
    assert torch.cosine_similarity(ours.flatten(), plain.flatten(), dim=0) > 0.99
    assert ours.norm() / plain.norm() == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": "huge"}, "there is no shape 'huge'; choose one of "),
        ({"lengths": (8, 33)}, "length is 33; the models take 1 to 32 tokens"),
        ({"lengths": ()}, "lengths is empty; name at least one"),
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"tokens": 24}, "tokens is 24, which is no multiple of length 16"),
        ({"teacher_steps": 1}, "teacher_steps is 1; it must be at least 2"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        settings(**changed)
    assert str(refusal.value).startswith(message)


@pytest.mark.usefixtures("nano")
def test_what_cannot_be_done_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "new_denoiser", None)
    monkeypatch.setattr(networks, "available_bytes", lambda _: 2**16)
    with pytest.raises(ValueError, match="distilling nano with 32 tokens a training step needs about"):
        run_distill(settings(), lambda _: None)
    monkeypatch.setattr(distillation, "can_measure", lambda _: False)
    with pytest.raises(ValueError) as refusal:
        run_distill(settings(), lambda _: None)
    assert str(refusal.value) == "bench distill measures peak memory, which needs Linux or CUDA"
