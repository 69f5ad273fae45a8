"""Likelihoods and their standard errors against enumeration, few-line versions and resampling."""

import math

import pytest
import torch

from fewstep.diffusion.schedule import SCHEDULES, LogLinear
from fewstep.evaluation.likelihood import Likelihood, likelihood
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from tests.reference import exact_bound, transformer_logits

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


def test_autoregressive_perplexity_agrees_with_a_transformer_written_out(
    tiny_autoregressive: AutoregressiveLM,
) -> None:
    """In float64, from the formulas: no code of the package computes what is expected."""
    nats = 0.0
    for row in TOKENS[:3].tolist():
        inputs = torch.tensor([29, *row[:-1]])
        weights = {
            name.removeprefix("backbone."): value for name, value in tiny_autoregressive.state_dict().items()
        }
        logits = transformer_logits(weights, inputs, num_layers=2, num_heads=2, causal=True)
        nats -= sum(torch.log(torch.softmax(logits[i], 0)[token]).item() for i, token in enumerate(row))
    measured = likelihood(tiny_autoregressive, TOKENS[:3], schedule=LogLinear(), batch_size=2)
    assert measured.perplexity == pytest.approx(math.exp(nats / 24), rel=1e-5)


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


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
def test_batches_change_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    whole, parts = (
        likelihood(model, TOKENS, schedule=LogLinear(), num_samples=2, batch_size=size) for size in (40, 7)
    )
    assert parts.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-6)
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-5)


@torch.no_grad()
def test_more_times_bring_one_sequence_to_its_exact_bound(tiny_denoiser: Denoiser) -> None:
    sequence = TOKENS[:1, :3]
    exact = exact_bound(lambda z: tiny_denoiser(z[None]).logits[0].log_softmax(-1), sequence[0], 29) / 3
    found = likelihood(
        tiny_denoiser, sequence, schedule=LogLinear(), num_samples=4000, batch_size=500, seed=2
    )
    assert found.nats_per_token == pytest.approx(exact, rel=0.03)
    assert math.isnan(found.standard_error)


def test_more_times_make_the_standard_error_smaller(tiny_denoiser: Denoiser) -> None:
    """Sequences that are equal differ only in what is drawn."""
    equal = TOKENS[:1].repeat(200, 1)
    errors = [
        likelihood(
            tiny_denoiser, equal, schedule=LogLinear(), num_samples=count, batch_size=400, seed=1
        ).standard_error
        for count in (1, 16)
    ]
    assert errors[1] < errors[0] / 4 * 1.25


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
def test_tokens_that_are_given_do_not_count(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    marked = TOKENS[:6].clone()
    marked[:, :5] = ~marked[:, :5]
    marked[3:, 5] = ~marked[3:, 5]
    num_samples = 2000 if kind == "tiny_denoiser" else 1
    measured = likelihood(model, marked, schedule=LogLinear(), num_samples=num_samples, batch_size=500)
    with torch.no_grad():
        total = 0.0
        for row, context in zip(TOKENS[:6], [5, 5, 5, 6, 6, 6], strict=True):
            if kind == "tiny_autoregressive":
                log_p = model(torch.cat([torch.tensor([29]), row[:-1]])[None]).logits[0].log_softmax(-1)
                total -= log_p[range(context, 8), row[context:]].sum().item()
            else:
                total += exact_bound(
                    lambda z, row=row, context=context: (
                        model(torch.cat([row[:context], z])[None]).logits[0, context:].log_softmax(-1)
                    ),
                    row[context:],
                    29,
                )
    assert measured.num_tokens == 15
    assert measured.nats_per_token == pytest.approx(total / 15, rel=0.02 if kind == "tiny_denoiser" else 1e-5)


def test_bits_per_byte_by_hand() -> None:
    measured = Likelihood(nats_per_token=2.0, standard_error=0.1, num_tokens=30, num_bytes=100)
    assert measured.bits_per_byte == pytest.approx(60 / math.log(2) / 100, rel=1e-12)
    assert measured.bits_per_byte_standard_error == pytest.approx(3 / math.log(2) / 100, rel=1e-12)
    assert math.isnan(Likelihood(2.0, 0.1, 30).bits_per_byte)


def test_logits_that_are_not_finite_are_refused_in_one_line(tiny_denoiser: Denoiser) -> None:
    with torch.no_grad():
        tiny_denoiser.output_head.weight[3, 2] = math.nan
    with pytest.raises(ValueError) as caught:
        likelihood(tiny_denoiser, TOKENS, schedule=LogLinear())
    assert str(caught.value).startswith("the model's logits are not finite")
    assert "\n" not in str(caught.value)


def test_nothing_to_measure_and_settings_out_of_range_are_refused(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="nothing to measure likelihood on"):
        likelihood(tiny_denoiser, TOKENS[:0], schedule=LogLinear())
    for settings in ({"num_samples": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            likelihood(tiny_denoiser, TOKENS, schedule=LogLinear(), **settings)
