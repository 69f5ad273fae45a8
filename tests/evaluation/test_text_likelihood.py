"""Perplexity of a text model on documents: how they are packed, what their bytes are, what is refused."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.evaluation.likelihood import packed, text_likelihood
from fewstep.sampling.constraints import encode
from tests.conftest import SENTENCES
from tests.evaluation.text_models import (
    next_token_log_probabilities,
    small_autoregressive,
    small_denoiser,
)


def test_documents_are_packed_with_separators_and_the_rest_is_dropped(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    stream = [token for text in SENTENCES for token in [*encode(tokenizer, text), tokenizer.eos_token_id]]
    contexts = packed(SENTENCES, tokenizer, context_length=16)
    assert contexts.flatten().tolist() == stream[: len(stream) // 16 * 16]
    assert len(stream) % 16 and contexts.shape[0] >= 6
    chosen = packed(SENTENCES, tokenizer, context_length=16, max_contexts=2)
    assert torch.equal(chosen, contexts[[0, -1]])


def test_a_corpus_is_packed_as_its_documents_are(
    corpus_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = Corpus(source=str(corpus_file))
    documents = corpus.documents()["text"]
    expected = packed(documents, tokenizer, context_length=32)
    assert torch.equal(packed(corpus, tokenizer, context_length=32), expected)


def test_perplexity_and_bits_per_byte_of_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    """Bytes are those of the text: a separator counts in the nats and has none."""
    model = small_autoregressive(tokenizer)
    contexts = packed(SENTENCES, tokenizer, context_length=20)
    nats = -sum(next_token_log_probabilities(model, ids).sum().item() for ids in contexts.tolist())
    found = text_likelihood(model, contexts, batch_size=3)
    assert found.perplexity == pytest.approx(math.exp(nats / contexts.numel()), rel=1e-5)
    text = tokenizer.decode(contexts.flatten().tolist()).replace("<|endoftext|>", "")
    assert text == "".join(SENTENCES)[: len(text)]  # all of it ASCII
    assert found.num_bytes == len(text)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_a_denoiser_is_measured_by_its_own_schedule(tokenizer: PreTrainedTokenizerBase) -> None:
    model, contexts = small_denoiser(tokenizer), packed(SENTENCES, tokenizer, context_length=20)
    log_linear = text_likelihood(model, contexts, num_samples=3)
    model.manifest["schedule"] = "cosine"
    cosine = text_likelihood(model, contexts, num_samples=3)
    assert cosine != log_linear
    error = math.hypot(log_linear.standard_error, cosine.standard_error)
    assert abs(cosine.nats_per_token - log_linear.nats_per_token) < 5 * error


def test_text_shorter_than_a_context_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the text has \d tokens, less than one context of 20; give more"):
        packed(["We hold."], tokenizer, context_length=20)
    with pytest.raises(ValueError, match="the text has 0 tokens"):
        packed([], tokenizer, context_length=20)
    short = tmp_path / "short.txt"
    short.write_text("We hold.")
    with pytest.raises(ValueError, match=r"short.txt' has \d tokens, less than one context of 20") as caught:
        packed(Corpus(source=str(short)), tokenizer, context_length=20)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="context_length is 0"):
        packed(SENTENCES, tokenizer, context_length=0)


def test_contexts_longer_than_the_models_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    contexts = packed(SENTENCES, tokenizer, context_length=40)
    with pytest.raises(ValueError, match="the contexts have 40 tokens, and the model reads 32 at once"):
        text_likelihood(small_denoiser(tokenizer), contexts)
