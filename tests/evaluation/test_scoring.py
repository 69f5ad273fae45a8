"""Scoring: only targets count, each given all before it; batches are filled, and with little padding."""

import pytest

from fewstep.evaluation.judge import Judge
from fewstep.evaluation.scoring import Window, batches, score
from tests.evaluation.reference import plain_nats

WINDOWS = [
    Window(text=0, context=[], targets=[5, 9, 250]),
    Window(text=1, context=[5, 9, 11, 12, 13, 14, 15, 16, 17], targets=[250]),
    Window(text=2, context=[3], targets=[5, 9, 250, 8, 1, 2, 3, 4]),
    Window(text=2, context=[4], targets=[5, 9, 250, 8, 1, 2, 3, 4]),
]


@pytest.mark.parametrize("batch_tokens", [1, 10, 1000])
def test_targets_are_scored_given_their_context_in_any_batch(judge: Judge, batch_tokens: int) -> None:
    expected = [plain_nats(judge, window.targets, window.context) for window in WINDOWS]
    assert score(judge, WINDOWS, batch_tokens=batch_tokens) == pytest.approx(expected, rel=1e-5)
    assert expected[2] != pytest.approx(expected[3], rel=1e-2)


def test_progress_counts_targets(judge: Judge) -> None:
    seen = []
    score(judge, WINDOWS, batch_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 20), (9, 20), (17, 20), (20, 20)]


def test_batches_take_the_longest_first_and_end_where_padding_would_grow() -> None:
    lengths = [30, 100, 91, 80, 100, 30]
    assert list(batches(lengths, 1000)) == [[1, 4, 2], [3], [0, 5]]
    assert list(batches(lengths, 200)) == [[1, 4], [2], [3], [0, 5]]
    assert list(batches([3, 3], 1)) == [[0], [1]]
    assert list(batches([], 5)) == []
