"""Diversity: entropy and distinct n-grams by hand, self-BLEU as sacrebleu has it."""

import math
import sys

import pytest
import sacrebleu
import torch

from fewstep.evaluation.diversity import distinct_n, self_bleu, unigram_entropy


def test_entropy_is_of_each_sequence_and_then_averaged() -> None:
    # Entropies log 2, log 4 and 0; the histogram of all twelve tokens would give 1.199.
    tokens = torch.tensor([[0, 0, 1, 1], [5, 1, 2, 3], [4, 4, 4, 4]])
    assert unigram_entropy(tokens) == pytest.approx((math.log(2) + math.log(4)) / 3, abs=1e-12)


def test_entropy_of_uneven_shares_is_in_nats() -> None:
    expected = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    assert unigram_entropy(torch.tensor([[9, 2, 9, 9]])) == pytest.approx(expected, abs=1e-12)


def test_sequences_of_different_lengths_weigh_the_same() -> None:
    sequences = [torch.tensor([1, 2]), torch.tensor([3] * 10)]
    assert unigram_entropy(sequences) == pytest.approx(math.log(2) / 2, abs=1e-12)


def test_distinct_n_by_hand() -> None:
    tokens = torch.tensor([[1, 2, 1, 2]])
    assert distinct_n(tokens, 1) == 2 / 4
    assert distinct_n(tokens, 2) == 2 / 3
    assert distinct_n(tokens, 3) == 1.0
    assert distinct_n(torch.tensor([[1, 2, 2, 1, 1, 2]]), 2) == 4 / 5


def test_n_grams_are_pooled_and_do_not_cross_sequences() -> None:
    # Pairs 11, 12 and 11, 13: three distinct of four. Crossing would add 21; a mean over sequences is 1.
    assert distinct_n(torch.tensor([[1, 1, 2], [1, 1, 3]]), 2) == 3 / 4
    assert distinct_n([torch.tensor([1]), torch.tensor([1, 1, 1])], 2) == 1 / 2


@pytest.mark.parametrize("tokens", [torch.empty(0, 4), torch.empty(2, 0), torch.tensor([1, 2, 3]), []])
def test_tokens_that_are_no_sequences_are_refused(tokens: torch.Tensor | list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"pass tokens as \(sequences, L\)"):
        unigram_entropy(tokens)
    with pytest.raises(ValueError, match=r"pass tokens as \(sequences, L\)"):
        distinct_n(tokens, 1)


def test_n_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0; an n-gram has at least 1 token"):
        distinct_n(torch.tensor([[1, 2]]), 0)
    with pytest.raises(ValueError, match="n is 3, and the longest sequence has 2 tokens"):
        distinct_n(torch.tensor([[1, 2]]), 3)


def test_self_bleu_is_the_mean_of_sacrebleu_over_texts() -> None:
    groups = [
        [" is strong, and it will grow.", " is strong, and it fell.", " was weak; it will grow."],
        [" of all nations", " of all nations and people", "x"],
    ]
    scores = [
        sacrebleu.sentence_bleu(group[i], [group[j] for j in range(3) if j != i]).score
        for group in groups
        for i in range(3)
    ]
    assert len(set(scores)) == 6
    assert self_bleu(groups) == pytest.approx(sum(scores) / 6, rel=1e-12)


def test_self_bleu_by_hand() -> None:
    assert self_bleu([["a b c d e", "a b c d e"]]) == pytest.approx(100)
    assert self_bleu([["a b c d", "e f g h"]]) < 10
    # "a b" of "a c": 1 of 2 words, and half of 1 of 1 pairs by smoothing, so sqrt(1/2 * 1/2) each way.
    assert self_bleu([["a b", "a c"]]) == pytest.approx(50)


@pytest.mark.parametrize("groups", [[], [["one text"]], [["a", "b"], []], ["a text"]])
def test_groups_that_compare_nothing_are_refused(groups: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="pass groups of at least two texts each"):
        self_bleu(groups)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"pip install 'fewstep\[eval\]'"):
        self_bleu([["a", "b"]])
