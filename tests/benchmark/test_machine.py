"""What a benchmark says of its machine."""

from importlib.metadata import version

import pytest
import torch

from fewstep.benchmark import machine
from fewstep.benchmark.timing import Timing

CPU = torch.device("cpu")


def test_bandwidth_and_throughput_are_those_of_the_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TRAFFIC_BYTES", 1024)
    monkeypatch.setattr(machine, "MATRIX_SIDE", 8)
    seconds = {"copy": Timing((4.0, 2.0)), "read": Timing((0.5, 3.0)), "product": Timing((2.0, 8.0))}
    monkeypatch.setattr(machine, "in_turn", lambda *_, **__: seconds)
    assert (
        machine.memory_bandwidth(CPU) == 2048.0
    )  # the read, 1024 bytes in 0.5 s; the copy moves 1024 a second
    seconds["copy"] = Timing((0.25,))
    assert machine.memory_bandwidth(CPU) == 8192.0  # the copy reads 1024 bytes and writes as many
    assert machine.matrix_throughput(CPU) == 512.0  # 2 * 8^3 operations in 2 s


@pytest.mark.usefixtures("nano")
def test_hardware_versions_and_threads() -> None:
    found = machine.describe(CPU)
    assert found["torch"] == version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert found["precision"] == "float32"
    assert found["accelerator"] is None
    assert found["processor"]
    assert found["bandwidth"] > 1e6
    assert found["throughput"] > 1e6


def test_available_memory_is_less_than_all() -> None:
    available = machine.available_bytes(CPU)
    assert available is not None
    assert 0 < available < machine.describe(CPU, measured=False)["memory_bytes"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device is 'tpu'; benchmarks run on cpu or cuda"),
        ("cuda", "device is 'cuda', and this torch finds no CUDA device; choose cpu"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError) as refusal:
        machine.checked_device(name)
    assert str(refusal.value) == message
