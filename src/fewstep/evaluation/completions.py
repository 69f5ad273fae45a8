"""How likely the end of a text is, given its beginning: what LAMBADA and multiple choice ask of a model.

Exact for an autoregressive model. For a denoiser it is the bound of which only the target's tokens are
masked, with the time integrated out: of M target tokens, n are masked, each n equally often, and

    -log p(target | context) <= E[ M / n * sum over masked tokens of -log p ],  over n and which n of the M

(Nie et al., 2025, "Large Language Diffusion Models", on evaluation). It does not depend on the schedule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.evaluation.likelihood import target_scores
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.models.language_model import LanguageModel
from fewstep.sampling.constraints import encode, equal_length_batches


@dataclass(frozen=True)
class Completion:
    """Tokens that are given, and the `target` tokens that follow them."""

    context: list[int]
    target: list[int]


@dataclass(frozen=True)
class CompletionScore:
    """What a model says of a completion."""

    nats: float
    """-log p(target | context), or a bound on it."""
    is_predicted: bool
    """Whether every token of the target is the likeliest: for a denoiser with the whole target masked, in
    one pass; for an autoregressive model after the target's tokens before it."""


def completion(tokenizer: PreTrainedTokenizerBase, context: str, target: str) -> Completion:
    """Return the tokens of `context` and `target`, cut where `target` begins.

    Space at the end of the context belongs to the target, as it does in the tokens of a byte-level BPE.
    """
    whole = encode(tokenizer, context + target)
    start = len(encode(tokenizer, context.rstrip()))
    return Completion(whole[:start], whole[start:])


@torch.no_grad()
def score_completions(
    network: LanguageModel,
    completions: Sequence[Completion],
    *,
    num_samples: int = 16,
    batch_size: int = 16,
    seed: int = 0,
) -> list[CompletionScore]:
    """Return the score of each completion, in order; it does not depend on the others beside it.

    Only texts of one length share a pass, so nothing is padded. Of a text beyond the model's context, the
    last tokens are read.

    Args:
        num_samples: Masks drawn for a denoiser's target, besides the one of the whole. Where there are no
            more masks than that, each counts by its probability, and nothing is drawn.
        batch_size: Sequences in one forward pass.
        seed: Completion i depends on the seed and on i.

    Raises:
        ValueError: if a setting is out of range, a target is empty or longer than the model's context, or
            logits are not finite.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    lengths = [len(item.target) for item in completions]
    for index, length in enumerate(lengths):
        if not 1 <= length <= network.max_length:
            raise ValueError(
                f"the end of text {index} that is to be scored has {length} tokens; it must have between 1 "
                f"and the {network.max_length} that the model reads at once"
            )
    texts = [torch.tensor([*item.context, *item.target][-network.max_length :]) for item in completions]
    nats, predicted = [0.0] * len(texts), [False] * len(texts)
    for batch in equal_length_batches(texts, batch_size):
        tokens, targets, weights, owners, firsts = [], [], [], [], []
        for index in batch:
            firsts.append(len(owners))
            masks_SM, weights_S = torch.ones(1, lengths[index], dtype=torch.bool), torch.ones(1).double()
            if isinstance(network, DenoiserNetwork):
                masks_SM, weights_S = target_masks(lengths[index], num_samples, seeds.generator(seed, index))
            targets_SL = torch.zeros(len(masks_SM), len(texts[index]), dtype=torch.bool)
            targets_SL[:, -lengths[index] :] = masks_SM
            tokens.append(texts[index].expand(targets_SL.shape))
            targets.append(targets_SL)
            weights += weights_S.tolist()
            owners += [index] * len(masks_SM)
        sums, right = _scores(network, torch.cat(tokens), torch.cat(targets), batch_size)
        for owner, weight, value in zip(owners, weights, sums.tolist(), strict=True):
            nats[owner] += weight * value
        for index, first in zip(batch, firsts, strict=True):
            predicted[index] = bool(right[first])
    return [CompletionScore(*score) for score in zip(nats, predicted, strict=True)]


def target_masks(num_targets: int, num_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return masks (S, M) of M target tokens, that of all first, and the weight of each mask's sum, (S,).

    The weighted sum has the bound as its expectation. The mask of all tokens counts exactly. Of the
    others, all 2^M - 2 are returned where `num_samples` allows it. Else that many are drawn: the number n
    of masked tokens with low discrepancy over 1..M-1, then which.
    """
    if 2**num_targets - 2 <= num_samples:
        masks_SM = torch.tensor(list(product([True, False], repeat=num_targets))[:-1])
        counts = masks_SM.sum(1).tolist()
        return masks_SM, torch.tensor([1 / (n * math.comb(num_targets, n)) for n in counts]).double()
    others = num_targets - 1
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    places = (torch.arange(num_samples) + offset) / num_samples
    counts_S = 1 + (others * places).long().clamp_max(others - 1)
    uniform = torch.rand(num_samples, num_targets, generator=generator, dtype=torch.float64)
    drawn_SM = uniform.argsort(1).argsort(1) < counts_S[:, None]
    weights_S = others / (num_samples * counts_S.double())
    everything = torch.ones(1, num_targets, dtype=torch.bool)
    return torch.cat([everything, drawn_SM]), torch.cat([torch.tensor([1 / num_targets]), weights_S])


def _scores(
    network: LanguageModel, tokens_SL: Tensor, targets_SL: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return what `target_scores` does, some sequences at once."""
    parts = [
        target_scores(network, tokens_BL.to(network.device), targets_BL.to(network.device))
        for tokens_BL, targets_BL in zip(
            tokens_SL.split(batch_size), targets_SL.split(batch_size), strict=True
        )
    ]
    nats, right = zip(*parts, strict=True)
    return torch.cat(nats), torch.cat(right)
