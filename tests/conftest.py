"""Fixtures shared by all tests: tiny networks with random weights, a tokenizer, and small corpora.

Caches live in a directory of the session and the hub is offline, so that no test reads or writes
what the user has, or needs a network.
"""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

SESSION_DIRECTORY = Path(tempfile.mkdtemp(prefix="fewstep-tests-"))
atexit.register(shutil.rmtree, SESSION_DIRECTORY, ignore_errors=True)
for variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(variable, None)
os.environ["HF_HOME"] = str(SESSION_DIRECTORY / "huggingface")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FEWSTEP_CACHE"] = str(SESSION_DIRECTORY / "fewstep")

# The caches above are read when these are imported.
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

from fewstep.data.tokenizer import train_tokenizer  # noqa: E402
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig  # noqa: E402
from fewstep.models.language_model import AutoregressiveLM, Denoiser  # noqa: E402

TINY_SHAPE = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "condition_size": 12,
}
SENTENCES = [
    "We hold that a free people governs itself.",
    "The state of the union is strong, and it will grow stronger.",
    "Four score and seven years ago there was no such thing as a masked token.",
    "Commerce, peace and honest friendship with all nations; entangling alliances with none.",
]


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values of a size at which it matters, adaLN among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            parameter.normal_(mean, 0.25, generator=generator)


@pytest.fixture
def tiny_denoiser() -> Denoiser:
    """A denoiser of 29 tokens, width 16 and two blocks, whose every weight is random."""
    model = Denoiser(DenoiserConfig(**TINY_SHAPE))
    randomize(model, seed=1)
    return model


@pytest.fixture
def tiny_autoregressive() -> AutoregressiveLM:
    """An autoregressive model of the same shape, whose every weight is random."""
    model = AutoregressiveLM(AutoregressiveConfig(**TINY_SHAPE))
    randomize(model, seed=2)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of 280 real tokens, whose mask is id 280."""
    return train_tokenizer(SENTENCES * 4, vocab_size=280)


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer: PreTrainedTokenizerBase) -> Path:
    """The saved `tokenizer`."""
    directory = SESSION_DIRECTORY / "tokenizer"
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def corpus_file() -> Path:
    """A JSONL file of 60 short documents in the column `text`."""
    path = SESSION_DIRECTORY / "corpus.jsonl"
    rows = [{"text": f"{SENTENCES[i % 4]} Number {i * i}."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
