"""A reader of the format written from docs/bitstream.md alone, in plain Python: no table routine,
coder or parser of the package. What it reads proves that the document says enough.
"""

from __future__ import annotations

from collections.abc import Sequence

WORD, STATE = 32, 64


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def table(weights: Sequence[int]) -> list[int]:
    size, total = len(weights), sum(weights)
    even = 65536 // size
    rest = 2**24 - even * size
    shares = [w * rest // total for w in weights]
    shares[max(range(size), key=lambda i: (weights[i], -i))] += rest - sum(shares)
    return [even + share for share in shares]


class RangeDecoder:
    def __init__(self, payload: bytes) -> None:
        self.payload, self.place = payload, 0
        self.low, self.width = 0, 2**STATE - 1
        self.point = self.word() << WORD | self.word()

    def word(self) -> int:
        part = self.payload[self.place : self.place + 4].ljust(4, b"\0")
        self.place += 4
        return int.from_bytes(part, "big")

    def symbol(self, frequencies: Sequence[int]) -> int:
        unit = self.width >> 24
        target = ((self.point - self.low) % 2**STATE) // unit
        start = symbol = 0
        while target >= start + frequencies[symbol]:
            start += frequencies[symbol]
            symbol += 1
        self.low = (self.low + unit * start) % 2**STATE
        self.width = unit * frequencies[symbol]
        if self.width < 2**WORD:
            self.low = (self.low << WORD) % 2**STATE
            self.width <<= WORD
            self.point = (self.point << WORD) % 2**STATE | self.word()
        return symbol


class Bytes:
    """The bytes behind the tag and the codec."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 6

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.place]
            self.place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def text(self) -> str:
        length = self.number()
        self.place += length
        return self.data[self.place - length : self.place].decode()


def header(stream: Bytes, tag: int) -> list[tuple[int, int, str]]:
    """Height, width and name of every picture."""
    if not tag & 2:
        height = stream.number()
        return [(height, height if tag & 1 else stream.number(), "")]
    named, count = stream.number(), stream.number()
    sizes = [(stream.number(), stream.number()) for _ in range(1 if tag & 1 else count)]
    sizes *= count if tag & 1 else 1
    return [(h, w, stream.text() if named else "") for h, w in sizes]


def read(
    data: bytes, *, book: int, planes: int, factor: int, tables: Sequence[Sequence[int]]
) -> list[tuple[int, int, str, list[int]]]:
    """(height, width, name, codes) of every picture of a raw or static file."""
    assert data[:2] == b"\x9dQ" and data[2] >> 4 == 1
    assert int.from_bytes(data[-4:], "big") == crc32c(data[:-4])
    stream = Bytes(data)
    pictures = header(stream, data[2])
    payload = data[stream.place : -4]
    width = (book - 1).bit_length()
    bits, left = int.from_bytes(payload, "big"), 8 * len(payload)
    coder = RangeDecoder(payload)
    out = []
    for h, w, name in pictures:
        codes = []
        for plane in range(planes):
            for _ in range(-(-h // factor) * -(-w // factor)):
                left -= width
                raw = bits >> max(left, 0) & 2**width - 1
                symbol = coder.symbol(tables[plane]) if data[2] >> 2 & 3 else raw
                codes.append(plane * book + symbol)
        out.append((h, w, name, codes))
    return out
