"""load, generate and stream: constraints, seeds, batches, refusals."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.models.checkpoint import save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel, load

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "condition_size": 8,
}
SAMPLERS = ["ancestral", "analytic", "first-hitting", "confidence"]


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model


@pytest.fixture
def denoiser(tokenizer: PreTrainedTokenizerBase) -> TextModel:
    return TextModel(randomized(Denoiser(DenoiserConfig(**SHAPE))), tokenizer)


@pytest.fixture
def autoregressive(tokenizer: PreTrainedTokenizerBase) -> TextModel:
    return TextModel(randomized(AutoregressiveLM(AutoregressiveConfig(**SHAPE))), tokenizer)


@pytest.fixture(params=["denoiser", "autoregressive"])
def either(request: pytest.FixtureRequest) -> TextModel:
    return request.getfixturevalue(request.param)


def test_prompt_and_suffix_stand_where_they_belong(denoiser: TextModel) -> None:
    prompt, suffix = "The state of", " is strong."
    first, last = encode(denoiser.tokenizer, prompt), encode(denoiser.tokenizer, suffix)
    generation = denoiser.generate(3, prompt=prompt, suffix=suffix, length=30, num_steps=4)
    for ids, text in zip(generation.tokens, generation.texts, strict=True):
        assert len(ids) == 30
        assert ids[: len(first)] == first
        assert ids[-len(last) :] == last
        assert max(ids) < 280
        assert text.startswith(prompt)
        assert text.endswith(suffix)
    assert generation.num_forwards <= 4


def test_infilled_text_keeps_everything_but_its_gaps(denoiser: TextModel) -> None:
    a, b, c = (encode(denoiser.tokenizer, part) for part in ("We hold", " a free", " itself"))
    ids = denoiser.generate(infill="We hold<mask:5> a free<mask> itself", num_steps=3).tokens[0]
    assert len(ids) == len(a) + 5 + len(b) + 1 + len(c)
    assert ids[: len(a)] == a
    assert ids[len(a) + 5 : len(a) + 5 + len(b)] == b
    assert ids[-len(c) :] == c
    assert max(ids) < 280


def test_a_gap_may_begin_and_end_the_text(denoiser: TextModel) -> None:
    middle = encode(denoiser.tokenizer, "free people")
    ids = denoiser.generate(infill="<mask:3>free people<mask:2>", num_steps=2).tokens[0]
    assert ids[3:-2] == middle


def test_rows_have_their_own_prompts(either: TextModel) -> None:
    prompts = ["We", "The state of the", "Four score and"]
    generation = either.generate(2, prompt=prompts, length=24)
    assert len(generation.texts) == 6
    for text, prompt in zip(generation.texts, [p for p in prompts for _ in range(2)], strict=True):
        assert text.startswith(prompt)


def test_texts_to_infill_may_differ_in_length(denoiser: TextModel) -> None:
    infills = ["We hold<mask:9>", "a<mask:2>b", "We hold<mask:9>", "x<mask:4>"]
    together = denoiser.generate(infill=infills, num_steps=3)
    assert [text[:1] for text in together.texts] == ["W", "a", "W", "x"]
    assert together.tokens[0] != together.tokens[2]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_same_seed_gives_the_same_texts_in_any_batch(either: TextModel, batch_size: int) -> None:
    whole = either.generate(5, prompt="We hold", length=24, seed=11)
    assert (
        either.generate(5, prompt="We hold", length=24, seed=11, batch_size=batch_size).tokens == whole.tokens
    )
    assert either.generate(3, prompt="We hold", length=24, seed=11).tokens == whole.tokens[:3]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_same_texts_in_any_batch(denoiser: TextModel, sampler: str) -> None:
    whole = denoiser.generate(5, num_steps=6, sampler=sampler)
    assert denoiser.generate(5, num_steps=6, sampler=sampler, batch_size=2).tokens == whole.tokens


def test_rows_and_seeds_differ(either: TextModel) -> None:
    a, b = either.generate(6, length=24).tokens, either.generate(6, length=24, seed=1).tokens
    assert len({tuple(ids) for ids in [*a, *b]}) == 12


def test_analytic_is_another_name_of_ancestral(denoiser: TextModel) -> None:
    ancestral, analytic = (denoiser.generate(3, sampler=name) for name in ("ancestral", "analytic"))
    assert ancestral == analytic


def test_generate_is_the_last_snapshot_of_stream(either: TextModel) -> None:
    settings = {"prompt": ["We", "The state of"], "length": 20, "seed": 4, "temperature": 0.8, "top_p": 0.9}
    generation = either.generate(2, **settings)
    *_, last = either.stream(2, **settings)
    assert last.texts == generation.texts
    assert last.tokens.tolist() == generation.tokens
    assert last.num_forwards == generation.num_forwards


def test_snapshots_say_what_each_step_wrote(either: TextModel) -> None:
    mask = either.tokenizer.mask_token_id
    snapshots = list(either.stream(2, prompt="We hold", length=20))
    written = torch.stack([snapshot.written for snapshot in snapshots])
    prompt_length = len(encode(either.tokenizer, "We hold"))
    assert (written[:, :, :prompt_length] == 0).all()
    assert (written[:, :, prompt_length:].sum(0) == 1).all(), "each other position is written once"
    for number, snapshot in enumerate(snapshots):
        assert torch.equal(snapshot.tokens == mask, written[number + 1 :].any(0))
        blanks = [text.count(TextModel.blank) for text in snapshot.texts]
        assert blanks == (snapshot.tokens == mask).sum(1).tolist()


def test_temperature_zero_needs_no_seed(either: TextModel) -> None:
    first, second = (either.generate(1, length=12, temperature=0.0, seed=seed) for seed in (0, 1))
    if not either.is_denoiser:  # a denoiser still draws the order
        assert first.tokens == second.tokens
    else:
        settings = {"length": 12, "temperature": 0.0, "sampler": "confidence", "num_steps": 6}
        assert either.generate(1, seed=0, **settings) == either.generate(1, seed=1, **settings)


def test_a_student_takes_the_steps_it_is_meant_for(denoiser: TextModel) -> None:
    assert denoiser.default_steps == 64
    student = TextModel(denoiser.network, denoiser.tokenizer, {"num_steps": 3})
    assert student.generate().num_forwards == 3
    assert [snapshot.num_steps for snapshot in student.stream()] == [3, 3, 3]


def test_saved_model_writes_the_same(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    network = randomized(Denoiser(DenoiserConfig(**SHAPE)))
    save_checkpoint(tmp_path / "model", network, tokenizer, {"num_steps": 5, "schedule": "cosine"})
    model = load(tmp_path / "model")
    expected = TextModel(network, tokenizer, {"num_steps": 5, "schedule": "cosine"}).generate(2)
    assert model.generate(2) == expected
    assert model.generate(2) != TextModel(network, tokenizer, {"num_steps": 5}).generate(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; generation takes at least 1 step"),
        ({"num_samples": 0}, "num_samples is 0; ask for at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"length": 33}, "length is 33; this model writes 1 to 32 tokens at once"),
        ({"length": 0}, "length is 0"),
        ({"prompt": "free " * 40}, r"prompt and suffix are \d+ tokens and the text is to have 32; shorten"),
        ({"infill": "free " * 40 + "<mask>"}, r"the text to infill is \d+ tokens and the context 32"),
        ({"infill": "no gap"}, "has no gap; write <mask:8>"),
        ({"infill": "a<mask>", "prompt": "b"}, "goes with neither prompt nor suffix"),
        ({"infill": "a<mask>", "length": 9}, "a text to infill has its own length; leave length out"),
        ({"prompt": ["a", "b", "c"], "suffix": ["x", "y"]}, "2 suffixes for 3 texts"),
        ({"sampler": "ddim"}, "there is no sampler 'ddim'; choose one of ancestral, analytic, first-hitting"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_refusals(denoiser: TextModel, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoiser.generate(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suffix": "the end"}, "continues a prompt; suffix and infill need a denoiser"),
        ({"infill": "a<mask>"}, "continues a prompt; suffix and infill need a denoiser"),
        ({"num_steps": 8}, "num_steps, sampler, cache_refresh and block_length are"),
        ({"cache_refresh": 4}, "num_steps, sampler, cache_refresh and block_length are"),
        ({"length": 40, "block_length": 8}, "num_steps, sampler, cache_refresh and block_length are"),
        ({"sampler": "ancestral"}, "num_steps, sampler, cache_refresh and block_length are"),
    ],
)
def test_what_an_autoregressive_model_refuses(
    autoregressive: TextModel, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        autoregressive.generate(**settings)


def test_texts_of_unequal_length_are_not_streamed(denoiser: TextModel) -> None:
    with pytest.raises(ValueError, match="differ in length; stream them one at a time"):
        next(denoiser.stream(infill=["a<mask>", "b<mask:2>"]))


def test_tokenizer_of_another_vocabulary_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    network = Denoiser(DenoiserConfig(**{**SHAPE, "vocab_size": 281}))
    with pytest.raises(
        ValueError, match="the tokenizer has 280 tokens and the model 281; load the tokenizer"
    ):
        TextModel(network, tokenizer)


def test_damaged_weights_are_refused(either: TextModel) -> None:
    with torch.no_grad():
        either.network.output_head.weight[5, 5] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite; its weights are damaged or diverged"):
        either.generate(length=8)


@pytest.mark.parametrize("cache_refresh", [1, 4, 0])
def test_a_text_longer_than_the_context_is_written_in_blocks(denoiser: TextModel, cache_refresh: int) -> None:
    prompt = "The state of the union"
    generation = denoiser.generate(
        2, prompt=prompt, length=75, block_length=16, num_steps=8, cache_refresh=cache_refresh
    )
    assert [len(ids) for ids in generation.tokens] == [75, 75]
    assert all(text.startswith(prompt) for text in generation.texts)
    assert max(map(max, generation.tokens)) < 280
    # three blocks, of 16, 16 and 11 tokens, take their share of 8 steps in 32 tokens
    assert generation.num_forwards <= 8 + 4 + 4 + 3


def test_a_cache_costs_fewer_full_passes(denoiser: TextModel) -> None:
    costs = {
        refresh: denoiser.generate(4, num_steps=16, cache_refresh=refresh).full_passes
        for refresh in (1, 4, 0)
    }
    assert costs[0] < costs[4] < costs[1] <= 16
    assert costs[0] == pytest.approx(1 + 2 * 15 / 16, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 8}, "block_length is for texts longer than the context of 32 tokens"),
        ({"block_length": 8, "length": 32}, "block_length is for texts longer than the context of 32"),
        ({"block_length": 0, "length": 64}, "block_length is 0; it must be at least 1 and below"),
        ({"block_length": 32, "length": 64}, "block_length is 32; it must be at least 1 and below"),
        ({"cache_refresh": -2}, "cache_refresh is -2; it is the steps from one full pass to the next"),
    ],
)
def test_blocks_and_caches_that_cannot_be(denoiser: TextModel, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoiser.generate(**settings)
