"""Batches as a pure function of the training step."""

import numpy as np
import pytest
import torch

from fewstep.data.loader import TokenLoader, validation_batch


def loader(num_tokens: int = 107, context_length: int = 5, batch_size: int = 4, seed: int = 0) -> TokenLoader:
    """Tokens that count from 0, so that each tells where it was cut from."""
    return TokenLoader(
        tokens=np.arange(num_tokens, dtype=np.uint16),
        context_length=context_length,
        batch_size=batch_size,
        seed=seed,
    )


def starts(of: TokenLoader, epoch: int) -> list[int]:
    """Where the contexts of an epoch begin, in the order they are dealt."""
    first, last = epoch * of.contexts_per_epoch, (epoch + 1) * of.contexts_per_epoch
    rows = torch.cat([of.batch(step) for step in range(last // of.batch_size + 1)])
    assert (rows.diff(dim=1) == 1).all(), "a context is a stretch of the text"
    return rows[first:last, 0].tolist()


def test_a_batch_depends_on_its_number_alone() -> None:
    forwards, backwards = loader(), loader()
    wanted = [forwards.batch(step) for step in range(12)]
    for step in reversed(range(12)):
        assert torch.equal(backwards.batch(step), wanted[step])
    assert wanted[0].dtype == torch.int64 and wanted[0].shape == (4, 5)


def test_batch_size_does_not_change_the_order() -> None:
    small = torch.cat([loader(batch_size=2).batch(step) for step in range(30)])
    large = torch.cat([loader(batch_size=6).batch(step) for step in range(10)])
    assert torch.equal(small, large)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_deals_each_context_exactly_once(epoch: int) -> None:
    of = loader()
    assert of.contexts_per_epoch == 20
    dealt = starts(of, epoch)
    offset = min(dealt)
    assert 0 <= offset < 5
    assert sorted(dealt) == [offset + 5 * i for i in range(20)]


def test_epochs_have_other_orders_and_offsets() -> None:
    of = loader()
    epochs = [starts(of, epoch) for epoch in range(30)]
    assert {min(dealt) for dealt in epochs} == {0, 1, 2, 3, 4}
    orders = [tuple((start - min(dealt)) // 5 for start in dealt) for dealt in epochs]
    assert len(set(orders)) == 30


def test_every_token_is_read_in_the_long_run() -> None:
    of = loader()
    rows = torch.cat([of.batch(step) for step in range(500)])
    reachable = 4 + 20 * 5  # 20 contexts behind an offset of up to 4
    assert set(rows.flatten().tolist()) == set(range(reachable))


def test_seeds_deal_differently() -> None:
    assert not torch.equal(loader(seed=0).batch(0), loader(seed=1).batch(0))


@pytest.mark.parametrize("num_tokens", [5, 6, 9, 10, 11])
def test_corpora_of_hardly_a_context(num_tokens: int) -> None:
    of = loader(num_tokens=num_tokens)
    rows = torch.cat([of.batch(step) for step in range(20)])
    assert (rows.diff(dim=1) == 1).all()
    assert rows.max() < num_tokens


def test_validation_contexts_are_spread_evenly() -> None:
    batch = validation_batch(np.arange(104), context_length=5, max_contexts=5)
    assert batch[:, 0].tolist() == [0, 25, 50, 70, 95]
    assert batch[1].tolist() == [25, 26, 27, 28, 29]


def test_all_contexts_where_there_are_few() -> None:
    batch = validation_batch(np.arange(23), context_length=5, max_contexts=100)
    assert batch[:, 0].tolist() == [0, 5, 10, 15]
