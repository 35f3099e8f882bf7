"""Priors: what is believed of the codes before they are read. Protocol, and the two that are the
same on every machine.

`raw` believes nothing: each code takes ceil(log2 S) bits (S ids of a plane). It needs no coder and
cannot fail. `static` believes the rates of the training data: one integer table per plane, shipped
with the codec. The third, `fusion`, is in fusion_prior.py.

All pictures of a file share one payload. A picture inside a pack can therefore not be read alone;
that was given up for the two to three bytes that each picture would otherwise pay for its own end
and length, of eighty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mmprod.bitstream.coder import RangeReader, RangeWriter, most_codes
from mmprod.bitstream.picture import CodecId, Codes
from mmprod.bitstream.tables import Frequencies, check_table
from mmprod.errors import IntegrityError

PriorName = Literal["raw", "static", "fusion"]
Shapes = Sequence[tuple[int, int, int]]
"""(planes, rows, columns) of each picture"""

GOOD_COPY = "take the file from a good copy"
_PART = 2**16
"""codes turned into bits, or read, at a time; a multiple of 8: parts of `raw` end with a byte"""


@dataclass(frozen=True)
class Payload:
    """The coded bytes, and the information content of the codes under the prior, in bits."""

    data: bytes
    bits: float


class Prior(Protocol):
    """Codes <-> payload. Codes are those of all pictures of a file, one after the other, ids of a
    plane counted from 0 (*symbols*).
    """

    name: PriorName

    def fingerprint(self, shapes: Shapes) -> bytes:
        """Two bytes that say which program on which machine computes the tables for pictures like
        these; none where that makes no difference.
        """

    def runtime(self) -> str:
        """That program and machine in words."""

    def encode(self, symbols: Codes, shapes: Shapes) -> Payload:
        """symbols (n,) int32 -> payload."""

    def decode(self, payload: bytes, shapes: Shapes) -> Codes:
        """payload -> symbols (n,) int32. Raises IntegrityError when it is no payload of pictures
        like these, or not in its one form.
        """


class RawPrior:
    """Fixed length. Bits of a code, and codes, follow each other from the highest bit down; the
    last byte is filled up with zeros.
    """

    name: PriorName = "raw"

    def __init__(self, codec: CodecId) -> None:
        self._book = codec.book
        self._width = math.ceil(math.log2(codec.book))

    def fingerprint(self, shapes: Shapes) -> bytes:
        return b""

    def runtime(self) -> str:
        return "any"

    def encode(self, symbols: Codes, shapes: Shapes) -> Payload:
        places = np.arange(self._width - 1, -1, -1, dtype=np.int32)
        parts = [
            np.packbits((part[:, None] >> places & 1).astype(np.uint8)).tobytes()
            for part in np.split(symbols, range(_PART, len(symbols), _PART))
        ]
        return Payload(b"".join(parts), float(len(symbols) * self._width))

    def decode(self, payload: bytes, shapes: Shapes) -> Codes:
        count = count_codes(shapes)
        size = -(-count * self._width // 8)
        if len(payload) != size:
            raise IntegrityError(
                f"the payload has {len(payload)} bytes, {count} codes take {size}", hint=GOOD_COPY
            )
        symbols = np.zeros(count, np.int32)
        step = _PART * self._width // 8
        for place, start in enumerate(range(0, size, step)):
            bits = np.unpackbits(np.frombuffer(payload[start : start + step], np.uint8))
            part = symbols[place * _PART : (place + 1) * _PART]
            used = len(part) * self._width
            for column in bits[:used].reshape(len(part), self._width).T:
                part[:] = part << 1 | column
            if bits[used:].any():
                raise IntegrityError("the payload does not end in zeros", hint=GOOD_COPY)
        if symbols.max() >= self._book:
            raise IntegrityError(
                f"the payload holds the id {symbols.max()} of a book of {self._book}",
                hint=GOOD_COPY,
            )
        return symbols


class StaticPrior:
    """One table (planes, S) int32 for all pictures, as `static_table` makes it."""

    name: PriorName = "static"

    def __init__(self, codec: CodecId, table: Frequencies) -> None:
        check_table(table, (codec.planes, codec.book))
        self._table = table

    def fingerprint(self, shapes: Shapes) -> bytes:
        return b""

    def runtime(self) -> str:
        return "any"

    def encode(self, symbols: Codes, shapes: Shapes) -> Payload:
        writer, start = RangeWriter(), 0
        for _, rows, columns in shapes:
            for table in self._table:
                writer.put(symbols[start : start + rows * columns], table)
                start += rows * columns
        return Payload(writer.finish(), writer.bits)

    def decode(self, payload: bytes, shapes: Shapes) -> Codes:
        check_count(payload, shapes)
        reader, start = RangeReader(payload), 0
        symbols = np.zeros(count_codes(shapes), np.int32)
        for _, rows, columns in shapes:
            for table in self._table:
                end = start + rows * columns
                for part in range(start, end, _PART):
                    piece = symbols[part : min(part + _PART, end)]
                    piece[:] = reader.take(table, len(piece))
                start = end
        reader.finish()
        return symbols


def count_codes(shapes: Shapes) -> int:
    return sum(planes * rows * columns for planes, rows, columns in shapes)


def check_count(payload: bytes, shapes: Shapes) -> None:
    """Refuse a payload too short for its pictures before anything is made for them."""
    count, most = count_codes(shapes), most_codes(len(payload))
    if count > most:
        raise IntegrityError(
            f"{len(payload)} bytes of payload cannot hold {count} codes, {most} at most",
            hint=GOOD_COPY,
        )
