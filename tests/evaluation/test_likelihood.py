"""Likelihoods and their standard errors against enumeration, few-line versions and resampling."""

import math

import pytest
import torch

from fewstep.diffusion.schedule import SCHEDULES, LogLinear
from fewstep.evaluation.likelihood import Likelihood, likelihood
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from tests.reference import exact_bound

TOKENS = torch.randint(0, 29, (40, 8), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def nats_by_sequence(model: AutoregressiveLM) -> torch.Tensor:
    """The exact nats per token of each sequence, (sequences,) float64."""
    inputs = torch.cat([torch.full((len(TOKENS), 1), 29), TOKENS], dim=1)[:, :-1]
    log_p = model(inputs).logits.double().log_softmax(-1)
    return -log_p.gather(2, TOKENS[..., None]).squeeze(2).mean(1)


def test_autoregressive_value_is_exact(tiny_autoregressive: AutoregressiveLM) -> None:
    measured = likelihood(tiny_autoregressive, TOKENS, schedule=LogLinear())
    expected = nats_by_sequence(tiny_autoregressive)
    assert measured.nats_per_token == pytest.approx(expected.mean().item(), rel=1e-6)
    assert measured.num_tokens == 320
    assert measured.perplexity == pytest.approx(math.exp(expected.mean().item()), rel=1e-5)


def test_standard_error_is_that_of_resampled_sequences(tiny_autoregressive: AutoregressiveLM) -> None:
    measured = likelihood(tiny_autoregressive, TOKENS, schedule=LogLinear())
    values = nats_by_sequence(tiny_autoregressive)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(0, 40, (20_000, 40), generator=generator)
    resampled = values[chosen].mean(1).std().item() * math.sqrt(40 / 39)  # resampling divides by n
    assert measured.standard_error == pytest.approx(resampled, rel=0.03)


def test_perplexity_error_is_the_first_order_of_the_error_in_nats() -> None:
    measured = Likelihood(nats_per_token=3.0, standard_error=1e-4, num_tokens=10)
    span = (math.exp(3.0 + 1e-4) - math.exp(3.0 - 1e-4)) / 2
    assert measured.perplexity_standard_error == pytest.approx(span, rel=1e-6)


def test_one_sequence_has_no_standard_error(tiny_autoregressive: AutoregressiveLM) -> None:
    assert math.isnan(likelihood(tiny_autoregressive, TOKENS[:1], schedule=LogLinear()).standard_error)


@pytest.mark.parametrize("name", SCHEDULES)
def test_denoiser_bound_agrees_with_enumeration_within_its_standard_error(
    name: str, tiny_denoiser: Denoiser
) -> None:
    """The bound does not depend on the schedule, only its variance does."""
    sequence = TOKENS[0, :3]
    with torch.no_grad():
        exact = exact_bound(lambda z: tiny_denoiser(z[None]).logits[0].log_softmax(-1), sequence, 29) / 3
    measured = likelihood(tiny_denoiser, sequence.repeat(400, 1), schedule=SCHEDULES[name], seed=3)
    assert measured.standard_error < 0.15 * exact
    assert abs(measured.nats_per_token - exact) < 4 * measured.standard_error


def test_denoiser_estimates_scatter_no_more_than_their_standard_error(tiny_denoiser: Denoiser) -> None:
    """Sequences are treated as independent; their low-discrepancy times can only reduce the scatter."""
    runs = [likelihood(tiny_denoiser, TOKENS[:12], schedule=LogLinear(), seed=seed) for seed in range(30)]
    scatter = torch.tensor([run.nats_per_token for run in runs]).std().item()
    reported = sum(run.standard_error for run in runs) / len(runs)
    assert 0.1 * reported < scatter < 1.3 * reported


def test_same_seed_same_value_whatever_was_drawn_before(tiny_denoiser: Denoiser) -> None:
    first = likelihood(tiny_denoiser, TOKENS[:4], schedule=LogLinear(), seed=5)
    torch.rand(3)
    assert likelihood(tiny_denoiser, TOKENS[:4], schedule=LogLinear(), seed=5) == first
    assert likelihood(tiny_denoiser, TOKENS[:4], schedule=LogLinear(), seed=6) != first
