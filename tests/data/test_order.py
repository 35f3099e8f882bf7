"""The sample order loses and repeats nothing, at any batch, epoch border and world size."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.data.order import epoch_order, global_batch
from mmprod.errors import ConfigError


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    first = epoch_order(3, 0, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert (epoch_order(3, 0, 100) == first).all()
    assert (epoch_order(3, 1, 100) != first).any()
    assert (epoch_order(4, 0, 100) != first).any()


def test_the_order_is_pinned() -> None:
    """A resumed run must see the same samples under any NumPy version."""
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_batches_cross_epoch_borders_without_loss_or_repeat() -> None:
    size, batch = 10, 4
    drawn = np.concatenate([global_batch(7, step, batch, size) for step in range(5)])
    assert (drawn == np.concatenate([epoch_order(7, epoch, size) for epoch in range(2)])).all()


def test_a_batch_larger_than_the_data_set_spans_epochs() -> None:
    drawn = global_batch(1, 0, 7, 3)
    assert np.bincount(drawn[:6]).tolist() == [2, 2, 2]
    assert len(drawn) == 7


def test_weights_set_how_often_a_sample_occurs() -> None:
    weights = np.array([0.0, 1.0, 1.0, 2.0, 4.0, 0.0])
    counts = np.zeros(6, np.int64)
    for epoch in range(40):
        order = epoch_order(9, epoch, 6, weights)
        once = np.bincount(order, minlength=6)
        assert (np.abs(once - 6 * weights / weights.sum()) < 1).all()
        counts += once
    assert counts[0] == counts[5] == 0
    assert np.allclose(counts / counts.sum(), weights / weights.sum(), atol=0.03)


def test_equal_weights_repeat_nothing_and_positions_are_shuffled() -> None:
    order = epoch_order(2, 0, 64, np.ones(64))
    assert sorted(order.tolist()) == list(range(64))
    assert (order != np.arange(64)).any()


def test_the_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1


@pytest.mark.parametrize(
    "weights", [np.ones(4), np.array([1.0, -1, 1]), np.array([1.0, np.nan, 1]), np.zeros(3)]
)
def test_unusable_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="weights") as caught:
        epoch_order(0, 0, 3, weights)
    assert caught.value.hint


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ConfigError):
        epoch_order(0, 0, 0)
    with pytest.raises(ConfigError):
        global_batch(0, -1, 4, 10)
