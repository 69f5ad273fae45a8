"""Scores of completions against enumeration of all masks, few-line versions, and each other."""

import math

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation.completions import (
    Completion,
    CompletionScore,
    completion,
    score_completions,
    target_masks,
)
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.constraints import encode
from tests.reference import exact_bound

CONTEXT = [3, 14, 15, 9, 26]


@torch.no_grad()
def bound(denoiser: Denoiser, context: list[int], target: list[int]) -> float:
    """The exact bound of `target` after `context`, over all of its masks."""

    def log_probabilities(rest: torch.Tensor) -> torch.Tensor:
        ids = torch.cat([torch.tensor(context, dtype=torch.long), rest])
        return denoiser(ids[None]).logits[0, len(context) :].double().log_softmax(-1)

    return exact_bound(log_probabilities, torch.tensor(target), 29)


@torch.no_grad()
def likeliest(denoiser: Denoiser, context: list[int], count: int) -> list[int]:
    """The likeliest token at each of `count` masked positions after `context`."""
    return denoiser(torch.tensor([[*context, *[29] * count]])).logits[0, len(context) :].argmax(1).tolist()


def one(model: Denoiser | AutoregressiveLM, context: list[int], target: list[int]) -> CompletionScore:
    return score_completions(model, [Completion(context, target)])[0]


@pytest.mark.parametrize("target", [[5], [5, 8], [9, 7, 9], [3, 2, 3, 8]])
def test_short_targets_are_exact(target: list[int], tiny_denoiser: Denoiser) -> None:
    assert one(tiny_denoiser, CONTEXT, target).nats == pytest.approx(
        bound(tiny_denoiser, CONTEXT, target), rel=1e-5
    )
    assert one(tiny_denoiser, [], target).nats == pytest.approx(bound(tiny_denoiser, [], target), rel=1e-5)


def test_estimate_for_a_long_target_has_the_bound_as_its_mean(tiny_denoiser: Denoiser) -> None:
    target = [3, 2, 3, 8, 4, 6]
    copies = [Completion(CONTEXT, target)] * 400
    scores = score_completions(tiny_denoiser, copies, num_samples=4, batch_size=500)
    nats = torch.tensor([score.nats for score in scores])
    error = nats.std().item() / math.sqrt(400)
    exact = bound(tiny_denoiser, CONTEXT, target)
    assert 0 < error < 0.01 * exact
    assert abs(nats.mean().item() - exact) < 4 * error
    more = score_completions(tiny_denoiser, copies[:100], num_samples=32, batch_size=500)
    assert torch.tensor([score.nats for score in more]).std() < nats.std() / 2


@pytest.mark.parametrize(("num_targets", "num_samples"), [(1, 1), (3, 6), (3, 5), (7, 16), (40, 3)])
def test_weights_are_those_of_the_bound(num_targets: int, num_samples: int) -> None:
    """A loss of 1 a token makes the bound M, whatever is drawn; the mask of all counts 1 / M."""
    for seed in range(20):
        masks, weights = target_masks(num_targets, num_samples, torch.Generator().manual_seed(seed))
        assert masks[0].all() and not masks[1:].all(1).any() and masks.any(1).all()
        assert weights[0].item() == pytest.approx(1 / num_targets, rel=1e-6)
        assert (weights * masks.sum(1)).sum().item() == pytest.approx(num_targets, rel=1e-6)
        assert len(masks) <= num_samples + 1


def test_number_of_masked_tokens_is_of_low_discrepancy() -> None:
    masks, _ = target_masks(9, 16, torch.Generator().manual_seed(0))
    counts = masks[1:].sum(1).bincount(minlength=9)
    assert counts.tolist() == [0, *[2] * 8]


@torch.no_grad()
def test_autoregressive_scores_are_exact(tiny_autoregressive: AutoregressiveLM) -> None:
    target = [3, 2, 8]
    logits = tiny_autoregressive(torch.tensor([[29, *CONTEXT, *target[:-1]]])).logits[0, 5:].double()
    expected = -sum(logits.log_softmax(1)[i, token].item() for i, token in enumerate(target))
    score = one(tiny_autoregressive, CONTEXT, target)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert not score.is_predicted
    greedy: list[int] = []
    for _ in range(3):
        logits = tiny_autoregressive(torch.tensor([[29, *CONTEXT, *greedy]])).logits[0, -1]
        greedy.append(int(logits.argmax()))
    assert one(tiny_autoregressive, CONTEXT, greedy).is_predicted


def test_a_denoisers_target_is_predicted_in_one_pass(tiny_denoiser: Denoiser) -> None:
    target = likeliest(tiny_denoiser, CONTEXT, 6)
    assert one(tiny_denoiser, CONTEXT, target).is_predicted
    for place in range(6):
        other = [*target[:place], (target[place] + 1) % 29, *target[place + 1 :]]
        assert not one(tiny_denoiser, CONTEXT, other).is_predicted


@pytest.mark.parametrize("kind", ["tiny_denoiser", "tiny_autoregressive"])
def test_a_score_does_not_depend_on_what_is_scored_beside_it(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    items = [Completion(CONTEXT[:n], list(range(m))) for n, m in ((5, 3), (2, 6), (4, 4), (0, 6), (5, 7))]
    together = score_completions(model, items, num_samples=4, batch_size=3, seed=7)
    for index, item in enumerate(items):
        others = [Completion([1], [2])] * index
        alone = score_completions(model, [*others, item], num_samples=4, batch_size=50, seed=7)[-1]
        assert alone.nats == pytest.approx(together[index].nats, rel=1e-5)
        assert alone.is_predicted == together[index].is_predicted


def test_only_what_fits_the_context_is_read(tiny_denoiser: Denoiser) -> None:
    long = [*[1, 2] * 20, *CONTEXT]
    assert one(tiny_denoiser, long, [7, 8]).nats == one(tiny_denoiser, long[-22:], [7, 8]).nats
    for target in ([], [1] * 25):
        with pytest.raises(ValueError, match=rf"text 0 .* has {len(target)} tokens; .* 1 and the 24"):
            one(tiny_denoiser, CONTEXT, target)


def test_text_is_cut_where_the_target_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The state of the union is"
    found = completion(tokenizer, text, " strong")
    assert found == completion(tokenizer, text + " ", "strong")
    assert [*found.context, *found.target] == encode(tokenizer, text + " strong")
    assert tokenizer.decode(found.target) == " strong"
    assert completion(tokenizer, "", "We hold").context == []
