"""GPT-2's tokenizer, which published checkpoints name and do not hold, without a network."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.data import tokenizer as module
from fewstep.data.tokenizer import load_tokenizer, vocab_size
from fewstep.models.adapters.published import EMBEDDING, HEAD
from fewstep.sampling.text_model import load
from tests.models.adapters.published_reference import Shape, mdlm_config, random_tensors, write_checkpoint


def test_ids_are_those_of_gpt2_and_the_mask_is_behind_them() -> None:
    """The ids are from the vocabulary that OpenAI published with the model."""
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer("Hello world", add_special_tokens=False)["input_ids"] == [15496, 995]
    assert (vocab_size(tokenizer), tokenizer.mask_token_id, tokenizer.eos_token_id) == (50257, 50257, 50256)
    text = "naïve café — 北京 🙂\n\n  it's"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"n_blocks": 12}, "tokenizer": {"name": "gpt2"}},
        {"model": {"n_blocks": 12}, "data": {"tokenizer_name_or_path": "gpt2"}},
        {"model_type": "mdlm", "vocab_size": 50258},
    ],
)
def test_a_checkpoint_without_a_tokenizer_has_the_one_it_names(
    config: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vocab_size(load_tokenizer(tmp_path)) == 50257
    assert vocab_size(load_tokenizer(tmp_path / "config.json")) == 50257  # a file in it, as a weight file is


def test_the_tokenizer_in_the_directory_comes_first(tmp_path: Path, tokenizer_directory: Path) -> None:
    load_tokenizer(tokenizer_directory).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mdlm", "vocab_size": 50258}))
    assert vocab_size(load_tokenizer(tmp_path)) == 280


def test_without_package_and_network_the_name_is_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GPT2_PACKAGE", "no_such_package")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mdlm", "vocab_size": 50258}))
    with pytest.raises(ValueError, match=r"\A[^\n]*'gpt2'[^\n]*\Z") as caught:
        load_tokenizer(tmp_path)
    assert "fewstep[gpt2]" in str(caught.value)


def test_a_published_model_of_gpt2_s_vocabulary_writes_text(tmp_path: Path) -> None:
    shape = Shape(width=8, heads=2, blocks=1, condition=2, tokens=50257, length=6)
    tensors = random_tensors(shape)
    assert len(tensors[EMBEDDING]) == len(tensors[HEAD[0]]) == 50258
    wanted = [15496, 995, 15496, 995, 15496, 995]
    tensors[HEAD[1]][:] = -1e4
    tensors[HEAD[1]][wanted[:2]] = 0.0  # of 50258 logits, two can be drawn; the mask's is the last
    write_checkpoint(tmp_path, tensors, mdlm_config(shape))
    written = load(tmp_path, device="cpu").generate(num_steps=3, seed=0)
    assert set(written.tokens[0]) <= set(wanted) and torch.tensor(written.tokens).shape == (1, 6)
    assert set(written.texts[0].replace("Hello", "").split()) <= {"world"}
