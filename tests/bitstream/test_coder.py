"""The range coder codes with exactly our integers, in the length that information theory says."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.bitstream.coder import RangeReader, RangeWriter, most_codes
from mmprod.bitstream.tables import TOTAL, frequencies, logit_weights
from mmprod.errors import IntegrityError
from tests.bitstream import reader


def some(size: int, count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tables (count, size) and symbols drawn from them."""
    rng = np.random.default_rng([seed, size, count])
    tables = frequencies(
        logit_weights((spread * rng.standard_normal((count, size))).astype(np.float32))
    )
    draws = rng.integers(0, TOTAL, count)
    return tables, (np.cumsum(tables, -1) <= draws[:, None]).sum(-1).astype(np.int32)


@pytest.mark.parametrize(
    ("size", "count"), [(2, 1), (2, 64), (3, 7), (100, 2), (100, 300), (4096, 16), (65_536, 2)]
)
@pytest.mark.parametrize("spread", [0.0, 2.0, 40.0])
def test_length_round_trip_and_the_document(size: int, count: int, spread: float) -> None:
    tables, symbols = some(size, count, spread)
    writer = RangeWriter()
    writer.put(symbols, tables)
    payload = writer.finish()
    bits = -np.log2(tables[np.arange(count), symbols] / TOTAL).sum()
    assert writer.bits == pytest.approx(bits)
    assert 8 * len(payload) <= 1.001 * bits + 16, "two bytes at the end at most"
    assert count <= most_codes(len(payload))
    assert np.array_equal(RangeReader(payload).take(tables, count), symbols)
    if size <= 4096:
        decoder = reader.RangeDecoder(payload)
        assert [decoder.symbol(row) for row in tables.tolist()] == symbols.tolist()


def test_one_table_for_many_is_a_row_for_each() -> None:
    tables, _ = some(300, 1, 1.5)
    symbols = np.random.default_rng(1).integers(0, 300, 500).astype(np.int32)
    one, each = RangeWriter(), RangeWriter()
    one.put(symbols, tables[0])
    each.put(symbols, tables.repeat(500, 0))
    payload = one.finish()
    assert payload == each.finish() and one.bits == pytest.approx(each.bits)
    taken = RangeReader(payload)
    first = [taken.take(tables[0], 100), taken.take(tables[0], 0), taken.take(tables[0], 400)]
    assert np.array_equal(np.concatenate(first), symbols)


def test_the_payload_is_the_shortest_and_smallest() -> None:
    for seed in range(60):
        tables, symbols = some(20, 9, 3.0, seed)
        writer = RangeWriter()
        writer.put(symbols, tables)
        payload = writer.finish()
        if not payload:
            continue
        for other in (payload[:-1], _plus(payload[:-1], 1), _plus(payload, -1)):
            try:
                found = RangeReader(other).take(tables, 9)
            except IntegrityError:
                continue
            assert not np.array_equal(found, symbols)


def _plus(data: bytes, step: int) -> bytes:
    value = int.from_bytes(data, "big") + step
    return value.to_bytes(len(data), "big") if 0 <= value < 256 ** len(data) else data[:0]


def test_carries_run_through_many_words() -> None:
    """Symbols whose interval straddles a word's border for long: the coder must hold words back."""
    table = frequencies(np.array([2**32, 0, 2**32], np.int64))
    rng = np.random.default_rng(0)
    for _ in range(100):
        symbols = np.where(rng.random(300) < 0.02, rng.integers(0, 3, 300), 1).astype(np.int32)
        writer = RangeWriter()
        writer.put(symbols, table)
        payload = writer.finish()
        assert np.array_equal(RangeReader(payload).take(table, 300), symbols)


def test_certain_codes_cost_little_but_not_nothing() -> None:
    table = frequencies(np.array([2**32, 0], np.int64))
    writer = RangeWriter()
    writer.put(np.zeros(100_000, np.int32), table)
    payload = writer.finish()
    assert 30 < len(payload) < 40 and 100_000 < most_codes(len(payload)) < 130_000


def test_nothing_is_nothing() -> None:
    assert RangeWriter().finish() == b""


def test_impossible_payloads_are_refused() -> None:
    tables, _ = some(3, 40, 0.0)
    refused = 0
    for seed in range(50):
        payload = b"\xff" * 4 + np.random.default_rng(seed).bytes(4)
        try:
            RangeReader(payload).take(tables, 40)
        except IntegrityError as error:
            refused += "payload" in error.message and bool(error.hint)
    assert refused
