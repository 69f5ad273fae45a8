"""Diversity of generated tokens: a low perplexity counts only if the text does not repeat itself."""

import statistics
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def unigram_entropy(tokens: Tensor | Iterable[Tensor]) -> float:
    """Return the entropy of each sequence's histogram of tokens, in nats, averaged over sequences.

    H = - sum over distinct tokens v of p(v) log p(v), with p(v) the share of v in its own sequence. It is
    at most log L, and depends on L: compare sequences of one length.

    Args:
        tokens: Generated tokens (sequences, L), or sequences of any lengths, each (L,).

    Raises:
        ValueError: if there is no sequence, or one is empty.
    """
    entropies = []
    for sequence in _sequences(tokens):
        shares = sequence.unique(return_counts=True)[1].double() / len(sequence)
        entropies.append(torch.special.entr(shares).sum().item())
    return sum(entropies) / len(entropies)


def distinct_n(tokens: Tensor | Iterable[Tensor], n: int) -> float:
    """Return the number of distinct n-grams over the number of n-grams, all sequences together.

    n-grams do not cross from one sequence to the next. Source: Li et al., 2016, section 5.3.

    Args:
        tokens: Generated tokens (sequences, L), or sequences of any lengths, each (L,).
        n: Length of the n-grams.

    Raises:
        ValueError: if there is no sequence, one is empty, `n` is below 1, or none has `n` tokens.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 token")
    sequences = _sequences(tokens)
    grams = [sequence.unfold(0, n, 1) for sequence in sequences if len(sequence) >= n]
    if not grams:
        longest = max(len(sequence) for sequence in sequences)
        raise ValueError(f"n is {n}, and the longest sequence has {longest} tokens; choose a smaller n")
    grams_NG = torch.cat(grams)
    return len(grams_NG.unique(dim=0)) / len(grams_NG)


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Return how much texts that continue one prompt repeat each other, from 0 to 100; lower is more diverse.

    The mean over all texts of the sentence BLEU-4 of a text against the others of its group, with
    sacrebleu's tokenizer, exponential smoothing and effective order. Source: Zhu et al., 2018, section 4.2,
    who write 0 to 1.

    Args:
        groups: The texts that continue each prompt, without the prompt.

    Raises:
        ValueError: if there is no group, one has fewer than two texts, or sacrebleu is not installed.
    """
    if not groups or any(isinstance(group, str) or len(group) < 2 for group in groups):
        raise ValueError(
            "self-BLEU compares the continuations of one prompt; pass groups of at least two texts each"
        )
    try:
        from sacrebleu import BLEU
    except ImportError as error:
        raise ValueError("self-BLEU needs sacrebleu; run `pip install 'fewstep[eval]'`") from error
    bleu = BLEU(effective_order=True)
    return statistics.fmean(
        bleu.sentence_score(text, [*group[:index], *group[index + 1 :]]).score
        for group in groups
        for index, text in enumerate(group)
    )


def _sequences(tokens: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the sequences, each (L,) with L at least 1."""
    sequences = list(tokens)
    if not sequences or any(sequence.dim() != 1 or len(sequence) == 0 for sequence in sequences):
        raise ValueError(
            "diversity needs at least one sequence of at least one token; pass tokens as (sequences, L)"
        )
    return sequences
