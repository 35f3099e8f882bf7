"""CRC-32C against the vectors of RFC 3720, appendix B.4, and a table-free implementation."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.bitstream.crc import crc32c
from tests.bitstream import reader


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_standard_vectors(data: bytes, value: int) -> None:
    assert crc32c(data) == reader.crc32c(data) == value


def test_every_single_bit_counts() -> None:
    data = np.random.default_rng(0).bytes(100)
    found = {crc32c(data)}
    for bit in range(800):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        found.add(crc32c(bytes(changed)))
    assert len(found) == 801
