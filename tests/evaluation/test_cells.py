"""Which cells an evaluation has, and which settings have no meaning."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation.cells import Cell, cells_of
from fewstep.sampling.text_model import TextModel, load
from tests.evaluation.tiny_models import save_tiny_models


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[str, TextModel]:
    paths = save_tiny_models(tmp_path_factory.mktemp("models"), tokenizer)
    return {Path(path).name: load(path) for path in (paths["autoregressive"], paths["denoiser"])}


def cells(models: dict[str, TextModel], **changed: Any) -> list[Cell]:
    settings: dict[str, Any] = {
        "steps": (2, 4), "temperatures": (0.9, 1.0), "cache_refresh": (1, 0),
        "autoregressive_top_p": (1.0, 0.9), "sampler": "ancestral",
    }  # fmt: skip
    return cells_of(models, **settings | changed)


def test_each_kind_of_model_has_its_own_ways(models: dict[str, TextModel]) -> None:
    rows = [tuple(cell.row().values()) for cell in cells(models)]
    assert rows == [
        *(("autoregressive", None, t, None, p) for p in (1.0, 0.9) for t in (0.9, 1.0)),
        *(("denoiser", steps, t, refresh, 1.0) for steps in (2, 4) for refresh in (1, 0) for t in (0.9, 1.0)),
    ]
    assert list(cells(models)[0].row()) == ["model", "steps", "temperature", "cache_refresh", "top_p"]
    assert {cell.sampling.sampler for cell in cells(models)} == {None, "ancestral"}


def test_a_list_that_no_model_needs_may_be_empty(models: dict[str, TextModel]) -> None:
    alone = {"autoregressive": models["autoregressive"]}
    assert len(cells(alone, steps=(), cache_refresh=())) == 4
    assert len(cells({"denoiser": models["denoiser"]}, autoregressive_top_p=())) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": ()}, r"steps is \[\]; name at least one value"),
        ({"steps": (4, 4)}, r"steps is \[4, 4\]; name at least one value, and none twice"),
        ({"steps": (4, 0)}, r"steps is \[4, 0\].*at least 1"),
        ({"cache_refresh": (-1,)}, "cache_refresh at least 0"),
        ({"temperatures": (-0.5,)}, r"temperatures is \[-0.5\]; each must be 0 or more"),
        ({"autoregressive_top_p": (1.5,)}, r"autoregressive_top_p is \[1.5\]; each must be above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    models: dict[str, TextModel], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cells(models, **changed)
