"""MAUVE: the library's own value, of features that it is told, and nothing printed."""

import math
import statistics
import sys
from typing import Any

import pytest
import torch
from mauve import compute_mauve
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.evaluation.features import features
from fewstep.evaluation.mauve import Mauve, mauve

NOUNS = ["union", "people", "nations", "peace", "commerce", "token", "friendship", "state"]
REFERENCES = [f"The {a} and the {b} of our {c}." for a in NOUNS[:4] for b in NOUNS[4:] for c in NOUNS[:3]]
SIMILAR = [f"The {a} and the {b} of our {c}." for a in NOUNS[:4] for b in NOUNS[4:] for c in NOUNS[3:6]]
DIFFERENT = [f"{i * i + 100} masked {NOUNS[i % 8]}" for i in range(48)]


@pytest.fixture(scope="module")
def featurizer(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a small causal network with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=281,
        initializer_range=0.3,
    )
    directory = tmp_path_factory.mktemp("featurizer") / "tiny"
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_the_value_is_that_of_the_library(featurizer: str, capfd: pytest.CaptureFixture[str]) -> None:
    measured = mauve(SIMILAR, REFERENCES, featurizer=featurizer, scaling_factor=2, seeds=(0, 3))
    assert capfd.readouterr() == ("", "")
    both = features([*SIMILAR, *REFERENCES], featurizer)
    expected = [
        compute_mauve(both[:48], both[48:], mauve_scaling_factor=2, seed=seed).mauve for seed in (0, 3)
    ]
    assert measured.values == tuple(expected)
    assert 0.05 < measured.mean < 0.999


def test_the_defaults_are_five_seeds_and_a_factor_of_five(featurizer: str) -> None:
    measured = mauve(SIMILAR, REFERENCES, featurizer=featurizer)
    both = features([*SIMILAR, *REFERENCES], featurizer)
    assert measured.values == tuple(compute_mauve(both[:48], both[48:], seed=seed).mauve for seed in range(5))
    assert measured.mean == pytest.approx(statistics.fmean(measured.values))


def test_equal_texts_are_nearest_and_different_ones_far(featurizer: str) -> None:
    equal = mauve(REFERENCES, REFERENCES, featurizer=featurizer, seeds=[0])
    assert equal.mean == pytest.approx(1, abs=1e-3)
    assert mauve(DIFFERENT, REFERENCES, featurizer=featurizer, seeds=[0]).mean < 0.1


def test_a_result_by_hand() -> None:
    measured = Mauve(featurizer="openai-community/gpt2-large", values=(0.2, 0.6))
    assert measured.name == "mauve_gpt2-large"
    assert Mauve(featurizer="minilm", values=(0.5,)).name == "mauve_minilm"
    assert measured.mean == pytest.approx(0.4)
    # Standard deviation 0.4 / sqrt 2, over sqrt 2.
    assert measured.standard_error == pytest.approx(0.2)
    assert math.isnan(Mauve(featurizer="minilm", values=(0.5,)).standard_error)


@pytest.mark.parametrize(
    ("generated", "references", "settings", "message"),
    [
        (SIMILAR[:19], REFERENCES, {}, "at least 20 texts on each side.* generated has 19"),
        (SIMILAR, [], {}, "at least 20 texts on each side.* references has 0"),
        (SIMILAR, REFERENCES, {"scaling_factor": 0}, "scaling_factor is 0; it must be above 0"),
        (SIMILAR, REFERENCES, {"seeds": ()}, "seeds is empty"),
        ([*SIMILAR[:30], ""], REFERENCES, {}, "text 30 of 79 is empty"),
    ],
)
def test_bad_input_is_refused(
    featurizer: str, generated: list[str], references: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mauve(generated, references, featurizer=featurizer, **settings)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"pip install 'fewstep\[eval\]'"):
        mauve(SIMILAR, REFERENCES)
