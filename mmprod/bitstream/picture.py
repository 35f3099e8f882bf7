"""What a file holds: pictures as codes, and the codec they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmprod.errors import ConfigError

Codes = npt.NDArray[np.int32]

TAG_BYTES = 3
"""of the codec's hash that a file carries: 1 in 16.8 million for another codec to look the same"""
MAX_BOOK = 2**16
"""ids of one plane; bounded by the integer tables (see `tables`)"""


@dataclass(frozen=True)
class CodecId:
    """Which codec the codes belong to, and their numbers.

    digest: SHA-256 in hex over everything that decoding depends on: decoder, code vectors *and* the
    static table (or the rates it is made of). codebook_size: K, ids of all planes together.
    factor: f, pixels a side of a cell. Raises ConfigError for numbers that cannot be.
    """

    digest: str
    codebook_size: int
    planes: int
    factor: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise ConfigError(f"{self.digest!r} is no SHA-256 in hex", hint="64 digits 0-9a-f")
        if self.planes < 1 or self.factor < 1 or self.codebook_size % self.planes:
            raise ConfigError(
                f"no codec has these numbers: {self}", hint="K is a multiple of planes"
            )
        if not 2 <= self.book <= MAX_BOOK:
            raise ConfigError(
                f"a book of {self.book} ids cannot be coded", hint=f"2 to {MAX_BOOK} ids per plane"
            )

    @property
    def book(self) -> int:
        """S: ids of one plane; those of plane p are p*S to (p+1)*S - 1."""
        return self.codebook_size // self.planes

    @property
    def tag(self) -> bytes:
        """What a file carries of the digest."""
        return bytes.fromhex(self.digest)[:TAG_BYTES]

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells of a picture: pixels beyond the picture fill the last ones."""
        return -(-height // self.factor), -(-width // self.factor)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(planes, rows, columns) of the codes of a picture."""
        return (self.planes, *self.cells(height, width))


@dataclass(frozen=True)
class Picture:
    """One picture: codes (planes * rows * columns,) int32, plane-major and row-major inside a
    plane; its size in pixels; optionally a plain file name.
    """

    codes: Codes
    height: int
    width: int
    name: str = ""
