"""Prompts of unequal lengths in one batch, and prompts by a chat template."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "condition_size": 8,
}
PROMPTS = ["We", "The state of the union is strong", "Four score", "Commerce, peace and honest"]
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}answer:"


@pytest.fixture(params=["denoiser", "autoregressive"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> TextModel:
    is_denoiser = request.param == "denoiser"
    network = Denoiser(DenoiserConfig(**SHAPE)) if is_denoiser else None
    network = network or AutoregressiveLM(AutoregressiveConfig(**SHAPE))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return TextModel(network, copy.deepcopy(tokenizer))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_prompts_text_does_not_depend_on_the_prompts_beside_it(model: TextModel, batch_size: int) -> None:
    whole = model.generate(prompt=PROMPTS, length=40, seed=5)
    parts = model.generate(prompt=PROMPTS, length=40, seed=5, batch_size=batch_size)
    assert parts.tokens == whole.tokens
    others = [PROMPTS[0], "A", "B and so on", "C"]
    assert model.generate(prompt=others, length=40, seed=5).tokens[0] == whole.tokens[0]
    assert [text.startswith(p) for text, p in zip(whole.texts, PROMPTS, strict=True)] == [True] * 4


def test_a_prompt_is_written_by_the_chat_template(model: TextModel) -> None:
    model.tokenizer.chat_template = TEMPLATE
    chat = model.generate(prompt=["We", "The"], chat=True, length=40)
    plain = model.generate(prompt=["user:We;answer:", "user:The;answer:"], length=40)
    assert chat.tokens == plain.tokens
    *_, last = model.stream(prompt="We", chat=True, length=40)
    assert last.texts[0] == plain.texts[0]


def test_an_answer_ends_at_its_separator(model: TextModel) -> None:
    """The question's own separators do not end it; a suffix does."""
    separator: Any = model.tokenizer.eos_token_id
    model.tokenizer.chat_template = TEMPLATE.replace(";", "<|endoftext|>")
    with torch.no_grad():  # many tokens end a text
        model.network.output_head.bias[separator] += 12
    chat = model.generate(prompt=["We", "The"], chat=True, length=40)
    for ids, text, question in zip(
        chat.tokens, chat.texts, ["user:Weanswer:", "user:Theanswer:"], strict=True
    ):
        start = ids.index(separator) + 1 + len(encode(model.tokenizer, "answer:"))
        end = ids.index(separator, start)
        assert text == question + model.decode(ids[start:end])
        assert len(model.decode(ids)) > len(text)
    *_, last = model.stream(prompt=["We", "The"], chat=True, length=40)
    assert last.texts == chat.texts
    if model.is_denoiser:
        assert model.generate(prompt="We", suffix="so", chat=True, length=40).texts[0].endswith("so")


def test_chat_needs_a_template(model: TextModel) -> None:
    with pytest.raises(ValueError, match="no chat template; set its chat_template"):
        model.generate(prompt="We", chat=True)
