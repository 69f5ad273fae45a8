"""Prompts in the losses: given tokens stay clean, and only the others are summed and counted."""

import math

import pytest
import torch

from fewstep.diffusion.masking import corrupt, plain_ids
from fewstep.diffusion.schedule import LogLinear
from fewstep.evaluation.likelihood import likelihood
from fewstep.losses.nelbo import NelboObjective
from fewstep.losses.next_token import NextTokenObjective
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from tests.reference import exact_bound

IDS = torch.randint(0, 29, (4, 8), generator=torch.Generator().manual_seed(0))
PROMPT_LENGTHS = [1, 5, 3, 7]
GIVEN = torch.arange(8) < torch.tensor(PROMPT_LENGTHS)[:, None]
TOKENS = torch.where(GIVEN, -1 - IDS, IDS)


def objective(seed: int = 0) -> NelboObjective:
    return NelboObjective(mask_token_id=29, schedule=LogLinear(), seed=seed)


def test_marks_are_taken_off() -> None:
    assert plain_ids(torch.tensor([[-1, -3, 2, 0]])).tolist() == [[0, 2, 2, 0]]
    assert torch.equal(plain_ids(TOKENS), IDS)


def test_given_tokens_are_never_masked_and_others_as_without_them() -> None:
    times = torch.tensor([1.0, 0.9, 0.5, 0.3], dtype=torch.float64)
    plain, marked = (
        corrupt(
            tokens, times, schedule=LogLinear(), mask_token_id=29, generator=torch.Generator().manual_seed(3)
        )
        for tokens in (IDS, TOKENS)
    )
    assert torch.equal(marked[GIVEN], IDS[GIVEN])
    assert torch.equal(marked[~GIVEN], plain[~GIVEN])
    assert (marked[0, 1:] == 29).all()


@torch.no_grad()
def test_bound_is_summed_over_masked_responses_and_divided_by_their_tokens(tiny_denoiser: Denoiser) -> None:
    batch = objective().prepare(TOKENS, 5)
    log_p = tiny_denoiser(batch["corrupted"]).logits.double().log_softmax(-1)
    expected = 0.0
    for b, first in enumerate(PROMPT_LENGTHS):
        assert torch.equal(batch["corrupted"][b, :first], IDS[b, :first])
        for i in range(first, 8):
            if batch["corrupted"][b, i] == 29:
                expected -= log_p[b, i, IDS[b, i]].item() / batch["times"][b].item()
    assert expected > 0
    assert objective().loss_sum(tiny_denoiser, batch).item() == pytest.approx(expected, rel=1e-5)
    assert objective().normalizer(batch) == 7 + 3 + 5 + 1


@torch.no_grad()
def test_expectation_is_the_exact_bound_of_the_response(tiny_denoiser: Denoiser) -> None:
    """Over many corruptions: the integral over time and masks of the last three tokens, given the rest."""
    row = torch.cat([-1 - IDS[0, :5], IDS[0, 5:]])
    sums = []
    for training_step in range(100):
        batch = objective().prepare(row.repeat(64, 1), training_step)
        sums.append(objective().loss_sum(tiny_denoiser, batch).item() / 64)

    def log_p(response: torch.Tensor) -> torch.Tensor:
        return tiny_denoiser(torch.cat([IDS[0, :5], response])[None]).logits[0, 5:].log_softmax(-1)

    exact = exact_bound(log_p, IDS[0, 5:], 29)
    estimate = torch.tensor(sums, dtype=torch.float64)
    error = (estimate.std() / math.sqrt(len(sums))).item()
    assert error < 0.02 * exact
    assert abs(estimate.mean().item() - exact) < 5 * error + 1e-4 * exact


def test_autoregressive_loss_is_that_of_the_response_given_the_prompt(
    tiny_autoregressive: AutoregressiveLM,
) -> None:
    batch = NextTokenObjective().prepare(TOKENS, 0)
    expected = 0.0
    for ids, first in zip(IDS, PROMPT_LENGTHS, strict=True):
        for i in range(first, 8):
            prefix = torch.cat([torch.tensor([29]), ids[:i]])[None]
            expected -= tiny_autoregressive(prefix).logits[0, -1].log_softmax(-1)[ids[i]].item()
    loss = NextTokenObjective().loss_sum(tiny_autoregressive, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert NextTokenObjective().normalizer(batch) == 16


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_a_row_counts_the_same_whatever_its_batch_mates(
    kind: str, tiny_denoiser: Denoiser, tiny_autoregressive: AutoregressiveLM
) -> None:
    """Loss and gradient of a batch of unequal prompts are the sums of those of its rows alone."""
    model = tiny_denoiser if kind == "diffusion" else tiny_autoregressive
    loss_of = objective() if kind == "diffusion" else NextTokenObjective()
    batch = loss_of.prepare(TOKENS, 2)
    whole = loss_of.loss_sum(model, batch)
    whole.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    rows = [{key: value[b : b + 1] for key, value in batch.items()} for b in range(4)]
    alone = [loss_of.loss_sum(model, row) for row in rows]
    assert whole.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-6)
    torch.stack(alone).sum().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_likelihood_is_per_token_of_the_response(tiny_autoregressive: AutoregressiveLM) -> None:
    measured = likelihood(tiny_autoregressive, TOKENS, schedule=LogLinear())
    inputs = torch.cat([torch.full((4, 1), 29), IDS[:, :-1]], dim=1)
    log_p = tiny_autoregressive(inputs).logits.double().log_softmax(-1)
    nats = -log_p.gather(2, IDS[..., None]).squeeze(2)[~GIVEN]
    assert measured.num_tokens == 16
    assert measured.nats_per_token == pytest.approx(nats.mean().item(), rel=1e-6)
    assert math.isfinite(measured.standard_error)
