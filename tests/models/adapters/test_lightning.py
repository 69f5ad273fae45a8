"""Lightning checkpoints: raw or averaged weights, settings out of pickled objects, and no code run."""

import os
import pickle
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.models.checkpoint import load_model
from tests.models.adapters.published_reference import SHAPES, random_tensors, sdtt_config, write_checkpoint

SHAPE = SHAPES[0]
PARAMETERS = [name for name in random_tensors(SHAPE) if name != "rotary_emb.inv_freq"]


class Node:
    """Pickles as OmegaConf's containers (`_content`) and values (`_val`) do."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state, _metadata=defaultdict(dict, {"flags": {"readonly": True}}))


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> type[Node]:
    """A class like `Node` under a name of OmegaConf, which need not be installed."""
    module = ModuleType("omegaconf.dictconfig")
    node = type("DictConfig", (Node,), {"__module__": module.__name__})
    monkeypatch.setattr(module, "DictConfig", node, raising=False)
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return node


def as_nodes(value: Any, node: type[Node]) -> Node:
    if isinstance(value, dict):
        return node(_content={key: as_nodes(item, node) for key, item in value.items()})
    return node(_val=value)


def content(seed: int = 0, **more: Any) -> dict[str, Any]:
    """Return what a training run saves, the average of each weight being twice the weight."""
    tensors = random_tensors(SHAPE, seed)
    state = OrderedDict((f"backbone.{name}", tensor) for name, tensor in tensors.items())
    averages = [2 * tensors[name] for name in PARAMETERS]
    return {
        "state_dict": state,
        "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": averages},
        "hyper_parameters": {"config": sdtt_config(SHAPE)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        **more,
    }


def saved(path: Path, what: Any) -> Path:
    torch.save(what, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        load_model(path, **options)
    return str(caught.value)


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}


def test_raw_and_averaged_weights_are_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", content())
    tensors = random_tensors(SHAPE)
    raw, averaged = weights_of(load_model(path, weights="raw")), weights_of(load_model(path, weights="ema"))
    assert raw.keys() == averaged.keys() == set(PARAMETERS)
    for name in PARAMETERS:
        rows = tensors[name][:-1] if name.startswith("output_layer.linear") else tensors[name]
        assert torch.equal(raw[name], rows), name
        assert torch.equal(averaged[name], 2 * rows), name
    message = refusal(path)
    assert "weights='raw'" in message and "weights='ema'" in message


def test_without_averages_only_the_raw_weights_can_be_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", content(ema=None))
    load_model(path)
    load_model(path, weights="raw")
    assert "no averaged weights" in refusal(path, weights="ema")


def test_averages_of_another_network_are_refused(tmp_path: Path) -> None:
    wrong = content(ema={"shadow_params": [torch.zeros(3)]})
    assert "1 averages" in refusal(saved(tmp_path / "run.ckpt", wrong), weights="ema")


def test_settings_are_read_out_of_objects_of_omegaconf(omegaconf: type[Node], tmp_path: Path) -> None:
    config = as_nodes(sdtt_config(SHAPE), omegaconf)
    path = saved(tmp_path / "run.ckpt", content(hyper_parameters={"config": config, "other": config}))
    assert load_model(path, weights="raw").max_length == SHAPE.length


def test_bare_state_dict_needs_a_config_beside_it(tmp_path: Path) -> None:
    state = content()["state_dict"]
    path = saved(tmp_path / "pytorch_model.bin", state)
    assert "config.json" in refusal(path)
    (
        write_checkpoint(tmp_path / "written", random_tensors(SHAPE), sdtt_config(SHAPE)) / "config.json"
    ).rename(tmp_path / "config.json")
    for place in (path, tmp_path):
        assert torch.equal(
            weights_of(load_model(place))["blocks.0.norm1.weight"], state["backbone.blocks.0.norm1.weight"]
        )


class RunsCode:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "ema"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(place: str, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    message = refusal(saved(tmp_path / "run.ckpt", content(**{place: {"x": RunsCode(harm)}})), weights="raw")
    assert "would run posix.mkdir" in message
    assert not harm.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "run.ckpt", weights_only=True)  # as torch itself says


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    (tmp_path / "run.ckpt").write_bytes(pickle.dumps(RunsCode(harm)))
    refusal(tmp_path / "run.ckpt")
    assert not harm.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", content())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refusal(path, weights="raw")


def test_a_file_without_a_mapping_is_refused(tmp_path: Path) -> None:
    assert "a Tensor" in refusal(saved(tmp_path / "run.ckpt", torch.zeros(3)))
