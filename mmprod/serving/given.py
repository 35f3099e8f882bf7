"""What a client gave a friendly model, taken out of its tensors and checked before use."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from mmprod.data.pictures import UnusablePicture, read_mask, read_picture, read_whole
from mmprod.graphs.runner import Arrays
from mmprod.serving.refusal import Refused, bad
from mmprod.serving.settings import FORMATS, Limits

Pixels = npt.NDArray[np.uint8]
MOST_SCANS = 64
"""of a progressive JPEG file, which usually has 10: each goes over all pixels for 16 bytes"""


class Given:
    """The inputs of one request by name."""

    def __init__(self, inputs: Arrays, limits: Limits) -> None:
        self._inputs, self._limits = inputs, limits

    def __contains__(self, name: str) -> bool:
        return name in self._inputs

    def text(self, name: str) -> str:
        """Raises Refused for what is no UTF-8, too long, or blank."""
        try:
            text = self.data(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(f"{name} is no UTF-8") from error
        most = self._limits.text_characters
        if len(text) > most:
            raise bad(f"{name} has {len(text)} characters, at most {most}")
        if not text.strip():
            raise bad(f"{name} is blank")
        return text

    def data(self, name: str) -> bytes:
        """The bytes of a file."""
        value: bytes = self._inputs[name].flat[0]
        return value

    def square(self, name: str, size: int) -> Pixels:
        """A picture as (size, size, 3), prepared as training pictures are."""
        try:
            return read_picture(self._picture(name), size, self._limits.pictures)
        except UnusablePicture as error:
            raise _no_picture(name, self._limits, error) from error

    def whole(self, name: str) -> Pixels:
        """A picture as it is (H, W, 3)."""
        try:
            return read_whole(self._picture(name), self._limits.pictures).pixels
        except UnusablePicture as error:
            raise _no_picture(name, self._limits, error) from error

    def mask(self, name: str, size: int) -> npt.NDArray[np.bool_]:
        """Where a mask is white (size, size)."""
        try:
            return read_mask(self._picture(name), size, self._limits.pictures)
        except UnusablePicture as error:
            raise _no_picture(name, self._limits, error) from error

    def _picture(self, name: str) -> bytes:
        data = self.data(name)
        if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MOST_SCANS:
            raise bad(f"{name} is a JPEG file of more than {MOST_SCANS} scans")
        return data

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = int(self._inputs[name].flat[0]) if name in self._inputs else default
        if not least <= value <= most:
            raise bad(f"{name} is {value}, not within {least} to {most}")
        return value

    def share(self, name: str, default: float) -> float:
        """A number above 0 and up to 1."""
        value = float(self._inputs[name].flat[0]) if name in self._inputs else default
        if not 0 < value <= 1:
            raise bad(f"{name} is {value:g}, not above 0 and up to 1")
        return value

    def seed(self) -> int:
        """The seed that was given, or one that nobody knows before."""
        return self.number("seed", secrets.randbits(31), 0, 2**63 - 1)

    def one_of(self, *names: str) -> str:
        """Which one of these inputs was given. Raises Refused for none and for several."""
        found = [name for name in names if name in self]
        if len(found) != 1:
            raise bad(f"give one of {', '.join(names)}")
        return found[0]


def _no_picture(name: str, limits: Limits, error: UnusablePicture) -> Refused:
    """In our own words: a decoder's may tell of the memory of this process."""
    del error
    return bad(
        f"{name} is no whole {', '.join(FORMATS)} file with sides of {limits.shortest_side} to "
        f"{limits.longest_side} and at most {limits.pixels} pixels"
    )
