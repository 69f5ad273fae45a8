"""A transformers model as a denoiser: its own logits, losses and gradients, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from fewstep.diffusion.schedule import LogLinear
from fewstep.losses.nelbo import DenoiserNetwork, nelbo_sum
from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser, swap_rows
from fewstep.models.inference import Inference
from tests.models.adapters.networks import KINDS, LAST, MASK, network, own_logits

ORIGINAL = torch.arange(40)
ORIGINAL[[MASK, LAST]] = ORIGINAL[[LAST, MASK]]


def denoiser(kind: str) -> HuggingFaceDenoiser:
    return HuggingFaceDenoiser(network(kind), mask_token_id=MASK, vocab_size=LAST)


def some_tokens(batch: int = 3, length: int = 11) -> Tensor:
    """Token ids of a denoiser, about a third of them the mask."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(2, LAST, (batch, length), generator=generator)
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < 0.35, LAST)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_the_models_own_full_forward(kind: str) -> None:
    adapted, tokens = denoiser(kind), some_tokens()
    assert isinstance(adapted, DenoiserNetwork)
    assert (adapted.mask_token_id, adapted.vocab_size) == (LAST, LAST)
    own = own_logits(network(kind), ORIGINAL[tokens])[..., ORIGINAL[:LAST]]
    logits = adapted.head(adapted.hidden(tokens))
    assert logits.dtype == torch.float32
    assert own.std() > 0.1
    torch.testing.assert_close(logits, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_chosen_rows_are_rows_of_all(kind: str) -> None:
    adapted, tokens = denoiser(kind), some_tokens()
    rows = tokens == LAST
    rows[1] = False  # a sequence that asks for nothing
    chosen = adapted.hidden(tokens, rows)
    assert len(chosen) == int(rows.sum()) > 0
    torch.testing.assert_close(chosen, adapted.hidden(tokens)[rows], atol=1e-5, rtol=0)
    assert adapted.hidden(tokens, torch.zeros_like(rows)).shape == (0, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_plain_code(kind: str) -> None:
    """The bound at alpha(t) = 1 - t, with the model's own logits less those of mask and padding."""
    adapted, plain, corrupted = denoiser(kind), network(kind), some_tokens()
    clean = torch.where(corrupted == LAST, corrupted.roll(1, 1) % 30, corrupted)
    times = torch.tensor([0.2, 0.5, 0.9])
    loss = nelbo_sum(adapted, clean, corrupted, times, schedule=LogLinear())
    loss.backward()
    masked = corrupted == LAST
    logits = own_logits(plain, ORIGINAL[corrupted])[..., ORIGINAL[:LAST]]
    weights = (1 / times)[:, None].expand(masked.shape)[masked]
    own = (weights * F.cross_entropy(logits[masked], clean[masked], reduction="none")).sum()
    own.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-3)  # the schedule begins a little above 0
    scale = loss.item() / own.item()
    gradients = {name.removeprefix("network."): p.grad for name, p in adapted.named_parameters()}
    for name, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
            continue
        moved = parameter.grad
        if moved.shape[0] == 40:  # a table over tokens
            moved = moved[ORIGINAL]
        torch.testing.assert_close(gradients[name], moved * scale, atol=2e-4, rtol=2e-3, msg=name)


def test_tied_embeddings_stay_tied() -> None:
    adapted = denoiser("bert")
    table = adapted.network.get_input_embeddings().weight
    assert adapted.output_head.weight.data_ptr() == table.data_ptr()
    assert len({id(p) for p in adapted.parameters()}) == len({id(p) for p in network("bert").parameters()})


def test_the_row_of_a_padding_token_learns_like_any_other() -> None:
    adapted = denoiser("llama")
    adapted.hidden(torch.tensor([[0, 5, 6]])).sum().backward()
    gradient = adapted.network.get_input_embeddings().weight.grad
    assert gradient is not None and gradient[0].abs().max() > 0


def test_dropout_is_off_in_training() -> None:
    adapted = HuggingFaceDenoiser(
        network("bert", hidden_dropout_prob=0.5), mask_token_id=MASK, vocab_size=LAST
    ).train()
    tokens = some_tokens()
    assert torch.equal(adapted.hidden(tokens), adapted.hidden(tokens))


def test_recomputed_activations_give_the_same_gradient() -> None:
    gradients = []
    for wanted in (False, True):
        adapted = denoiser("llama").train()
        adapted.recompute_activations(wanted)
        adapted.hidden(some_tokens()).square().sum().backward()
        gradients.append(adapted.network.get_input_embeddings().weight.grad)
    torch.testing.assert_close(*gradients)


def test_roberta_takes_fewer_positions_than_it_has_rows() -> None:
    """Its positions begin behind the padding id, here 0."""
    assert denoiser("roberta").max_length == 31
    assert denoiser("roberta").hidden(torch.full((1, 31), 7)).shape == (1, 31, 16)


def test_context_is_what_it_was_trained_on_and_no_longer_than_it_can_be() -> None:
    adapted = denoiser("bert")
    assert adapted.max_length == 32
    adapted.max_length = 12
    assert adapted.max_length == 12
    with pytest.raises(ValueError, match="33 tokens is longer than the 32 positions of this BertForMaskedLM"):
        adapted.max_length = 33


@pytest.mark.parametrize(
    "model",
    [
        network("llama", is_causal=True),
        network("qwen2", is_causal=True),
        GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_causal_model_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        HuggingFaceDenoiser(model, mask_token_id=MASK, vocab_size=LAST)
    assert f"this {type(model).__name__} is causal" in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        BertModel(network("bert").config),
        BartForConditionalGeneration(
            BartConfig(
                vocab_size=40,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
            )
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_no_single_language_model_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=f"a {type(model).__name__} is no single transformer with a linear"):
        HuggingFaceDenoiser(model, mask_token_id=MASK, vocab_size=LAST)


def test_model_whose_logits_are_bent_is_refused() -> None:
    model = network("llama")
    forward = model.forward

    def capped(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    model.forward = capped
    with pytest.raises(ValueError, match="not what its last linear layer returns"):
        HuggingFaceDenoiser(model, mask_token_id=MASK, vocab_size=LAST)


def test_model_without_a_row_for_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="embeddings of 40 ids, and its mask or last token is id 40"):
        HuggingFaceDenoiser(network("bert"), mask_token_id=40, vocab_size=40)


def test_int8_rounds_the_blocks_and_compile_is_refused() -> None:
    adapted, tokens = denoiser("bert"), some_tokens()
    exact = copy.deepcopy(adapted).hidden(tokens)
    Inference(device="cpu", int8=True).prepare(adapted)
    difference = (adapted.hidden(tokens) - exact).abs().max()
    assert 0 < difference < 0.2 * exact.std()
    with pytest.raises(ValueError, match="blocks of a BertForMaskedLM stay as they are"):
        Inference(device="cpu", compile="default").prepare(denoiser("bert"))


def test_tied_table_is_changed_once() -> None:
    table, other = torch.arange(8.0).view(4, 2), torch.arange(4.0)
    swap_rows([table, table, other], 1, 3)
    assert table.tolist() == [[0, 1], [6, 7], [4, 5], [2, 3]]
    assert other.tolist() == [0, 3, 2, 1]
