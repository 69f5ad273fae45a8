"""`bench quality`: a real run of tiny models under a real judge, its rows, its plot, its refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.benchmark.quality import QualitySettings, plot_quality, run_quality
from fewstep.evaluation.samples import Samples
from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "condition_size": 8,
}


@pytest.fixture
def directories(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A denoiser, an autoregressive model, and a judge of the same vocabulary."""
    for name, model in (
        ("denoiser", Denoiser(DenoiserConfig(**SHAPE))),
        ("autoregressive", AutoregressiveLM(AutoregressiveConfig(**SHAPE))),
    ):
        save_checkpoint(tmp_path / name, model, tokenizer, {})
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=282,
        bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "judge")
    of_judge = copy.deepcopy(tokenizer)
    of_judge.bos_token = "<s>"
    of_judge.save_pretrained(tmp_path / "judge")
    return {name: str(tmp_path / name) for name in ("denoiser", "autoregressive", "judge")}


def settings(directories: dict[str, str], **changed: Any) -> QualitySettings:
    chosen: dict[str, Any] = {
        "models": (directories["denoiser"], directories["autoregressive"]), "steps": (2, 6),
        "cache_refresh": (1, 0), "int8": True, "judge": directories["judge"], "device": "cpu",
        "samples": Samples(num_samples=2, batch_size=2, length=20),
    }  # fmt: skip
    return QualitySettings(**chosen | changed)


@pytest.mark.filterwarnings("ignore")
def test_a_real_run_has_a_row_for_each_way_to_generate(directories: dict[str, str], tmp_path: Path) -> None:
    rows = run_quality(settings(directories))["rows"]
    denoiser, autoregressive = directories["denoiser"], directories["autoregressive"]
    assert [(row["model"], row["steps"], row["cache_refresh"]) for row in rows] == [
        *((denoiser, steps, refresh) for steps in (2, 6) for refresh in (1, 0)),
        (autoregressive, None, None),
        (f"{denoiser} int8", 2, 1),
        (f"{denoiser} int8", 6, 1),
    ]
    assert all(row["gen_ppl"] > 1 and row["gen_ppl_standard_error"] > 0 for row in rows)
    assert rows[3]["full_passes"] < rows[2]["full_passes"]
    plot_quality(rows, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": ()}, "models, steps or cache_refresh is empty"),
        ({"steps": (4, 0)}, "steps must be at least 1"),
        ({"cache_refresh": (-1,)}, "cache_refresh at least 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(changed: dict[str, Any], message: str) -> None:
    names = dict.fromkeys(("denoiser", "autoregressive", "judge"), "none")
    with pytest.raises(ValueError, match=message):
        settings(names, **changed)
