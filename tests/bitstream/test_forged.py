"""Files that claim more than they hold, behind a right checksum: refused soon, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmprod.bitstream import CodecId, FusionPrior, RawPrior, StaticPrior, read_file
from mmprod.bitstream.coder import SPARE_BYTES, RangeReader, RangeWriter
from mmprod.bitstream.container import Header, build
from mmprod.bitstream.tables import Frequencies, frequencies
from mmprod.errors import IntegrityError
from tests.bitstream.fakes import FakePrior, codec_id, table_of

PAYLOADS = [bytes(32), bytes([255]) * 32, bytes(range(7, 39))]


def forged(prior: FusionPrior, codec: CodecId, sizes: tuple[tuple[int, int], ...], payload: bytes):
    shapes = [codec.shape(*size) for size in sizes]
    header = Header("fusion", codec.tag, sizes, (), prior.fingerprint(shapes), b"abc")
    return build(header, payload)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("sizes", [((16, 16),) * 4000, ((1000, 1000),)])
def test_a_forged_fusion_file_ends_after_a_few_calls(
    sizes: tuple[tuple[int, int], ...], payload: bytes
) -> None:
    codec = codec_id(64)
    runner = FakePrior(codec)
    prior = FusionPrior(codec, runner)
    data = forged(prior, codec, sizes, payload)
    assert len(data) <= 57
    probes = runner.calls
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="the payload h"):
        read_file(data, codec, prior)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    assert runner.calls - probes <= 24, "two batches of blocks at most, of a thousand"


@pytest.mark.parametrize("sizes", [((16, 16),) * 4000, ((1000, 1000),)])
def test_a_forged_static_file_ends_after_a_few_reads(
    sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, taken = codec_id(64), []
    take = RangeReader.take

    def counted(self: RangeReader, table: Frequencies, count: int) -> object:
        taken.append(count)
        return take(self, table, count)

    monkeypatch.setattr(RangeReader, "take", counted)
    data = build(Header("static", codec.tag, sizes), PAYLOADS[2])
    with pytest.raises(IntegrityError, match="the payload h"):
        read_file(data, codec, StaticPrior(codec, table_of(codec)))
    assert sum(taken) <= 2**16, "of one large picture a part"
    assert len(taken) < 20


def test_a_forged_raw_file_is_refused_unread() -> None:
    codec = codec_id(64)
    data = build(Header("raw", codec.tag, ((4096, 4096),)), bytes(32))
    with pytest.raises(IntegrityError, match="codes take"):
        read_file(data, codec, RawPrior(codec))


def test_no_honest_payload_is_used_up_before_its_end() -> None:
    """The bound behind the refusal: information of the codes <= 8 * bytes + 32 bits, for tables
    and codes of every kind, those that leave the shortest payloads included.
    """
    rng = np.random.default_rng(3)
    tightest = 64.0
    for trial in range(300):
        size = int(rng.choice([2, 3, 16, 700]))
        sharp = float(rng.choice([0.0, 1.0, 8.0, 30.0]))
        weights = np.floor(2.0**32 * np.exp(-sharp * rng.random(size))).astype(np.int64)
        table = frequencies(weights)
        likely = table / table.sum()
        count = int(rng.integers(1, 400))
        symbols = [
            np.zeros(count, np.int32),
            np.full(count, size - 1, np.int32),
            rng.choice(size, count, p=likely).astype(np.int32),
            rng.integers(0, size, count).astype(np.int32),
        ][trial % 4]
        writer = RangeWriter()
        writer.put(symbols, table)
        payload = writer.finish()
        tightest = min(tightest, 8 * len(payload) + 32 - writer.bits)
        reader = RangeReader(payload)
        for part in np.array_split(symbols, 5):
            assert np.array_equal(reader.take(table, len(part)), part)
        reader.finish()
    assert 0 <= tightest < 8, "the bound is reached, and never passed"
    assert 8 * SPARE_BYTES > 32
