"""The integer tables: exact sums, no zeros, order kept, the same by another way of computing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmprod.bitstream import static_table
from mmprod.bitstream.tables import (
    EXPONENTIALS,
    STEPS,
    TOTAL,
    UNIFORM_SHARE,
    check_table,
    frequencies,
    logit_weights,
)
from mmprod.errors import ConfigError, NumericsError
from tests.bitstream import reader

SIZES = (2, 3, 5, 255, 1000, 4096, 30_000, 65_536)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.0, 0.3, 5.0, 200.0])
def test_sums_are_exact_and_order_is_kept(size: int, spread: float) -> None:
    rng = np.random.default_rng([size, int(10 * spread)])
    logits = (spread * rng.standard_normal((3, size))).astype(np.float32)
    weights = logit_weights(logits)
    table = frequencies(weights)
    assert table.dtype == np.int32 and table.shape == (3, size)
    assert (table.sum(-1, dtype=np.int64) == TOTAL).all()
    assert table.min() >= UNIFORM_SHARE // size >= 1
    assert table.max() <= TOTAL - TOTAL // 2**9, "no id may cost less than most_codes() supposes"
    order = np.argsort(logits, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(weights, order, -1)) >= 0).all()
    by_weight = np.argsort(weights, axis=-1, kind="stable")
    steps = np.diff(np.take_along_axis(table, by_weight, -1))
    rising = np.diff(np.take_along_axis(weights, by_weight, -1)) > 0
    assert (steps[rising] >= 0).all()


@pytest.mark.parametrize("size", [2, 3, 37, 1000])
def test_big_integers_give_the_same_tables(size: int) -> None:
    rng = np.random.default_rng(size)
    for weights in rng.integers(0, 2**32, (20, size)) * (rng.random((20, size)) < 0.4):
        weights[rng.integers(size)] = 2**32
        assert frequencies(weights).tolist() == reader.table(weights.tolist())


def test_exponentials_are_those_of_the_document() -> None:
    assert EXPONENTIALS[0] == 2**32 and EXPONENTIALS[-1] == 0
    assert EXPONENTIALS[STEPS] == round(2**32 / math.e)
    exact = [2**32 * math.exp(-i / STEPS) for i in range(len(EXPONENTIALS))]
    assert np.abs(EXPONENTIALS - np.array(exact)).max() <= 0.5 + 1e-5


def test_rounding_costs_what_is_said() -> None:
    logits = (3 * np.random.default_rng(0).standard_normal((50, 1024))).astype(np.float32)
    exact = np.exp(logits - logits.max(-1, keepdims=True).astype(np.float64))
    exact /= exact.sum(-1, keepdims=True)
    coded = frequencies(logit_weights(logits)) / TOTAL
    loss = (exact * np.log2(exact / coded)).sum(-1).mean()
    assert 0 < loss < 0.012, "0.001 bit for the grid, at most 0.0057 for the even share, some left"


def test_logits_within_the_grid_give_the_same_table() -> None:
    logits = np.array([0.0, 1.01, -2.24], np.float32)
    near = logits + np.array([0.02, -0.03, 0.03], np.float32)
    assert np.array_equal(logit_weights(logits), logit_weights(near))
    assert not np.array_equal(logit_weights(logits), logit_weights(logits + logits))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    values = np.array([0.5, bad, 0.25, 0.25], np.float32)
    with pytest.raises(NumericsError, match="infinite"):
        logit_weights(values)
    with pytest.raises(NumericsError, match="rate"):
        static_table(np.abs(values), 1)
    with pytest.raises(NumericsError, match="rate"):
        static_table(np.array([0.5, -0.5], np.float32), 1)


def test_the_largest_floats_are_numbers_too() -> None:
    most = np.finfo(np.float32).max
    table = frequencies(logit_weights(np.array([most, -most, 0, most], np.float32)))
    assert table.sum() == TOTAL and table[1] == table[2] == UNIFORM_SHARE // 4


def test_static_tables_per_plane() -> None:
    rate = np.array([0.5, 0.25, 0.25, 0, 0, 0, 0, 0], np.float32)
    table = static_table(rate, 2)
    assert table.shape == (2, 4)
    even, rest = UNIFORM_SHARE // 4, TOTAL - UNIFORM_SHARE
    assert table[0].tolist() == [even + rest // 2, even + rest // 4, even + rest // 4, even]
    assert table[1].tolist() == [TOTAL // 4] * 4, "a plane never seen: all ids alike"
    check_table(table, (2, 4))
    for broken in (table[:1], table.astype(np.int64), table + 1, table - np.eye(2, 4, dtype="i4")):
        with pytest.raises(ConfigError, match="no static table"):
            check_table(broken, (2, 4))


@pytest.mark.parametrize("size", [1, 65_537])
def test_books_that_cannot_be_coded_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="ids"):
        frequencies(np.ones(size, np.int64))


def test_weights_beyond_the_range_are_a_bug() -> None:
    for weight in (-1, 2**32 + 1):
        with pytest.raises(ValueError, match="weights"):
            frequencies(np.array([1, weight], np.int64))
