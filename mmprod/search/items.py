"""What lies in an index, what goes into it and what a search finds.

A picture is one item, each of its captions is another; both carry the picture's name, so they come
and go together.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]
Kind = Literal["image", "text"]


@dataclass(frozen=True)
class Entry:
    """A picture that is to be indexed. `name`: its own within the index.

    `digest()`: SHA-256 of its content, in hex. `load()`: pixels (S, S, 3) uint8. Both raise
    UnusablePicture or OSError.
    """

    name: str
    captions: tuple[str, ...]
    digest: Callable[[], str]
    load: Callable[[], Pixels]


@dataclass(frozen=True)
class Item:
    """One thing that can be found. vector: (E,) of length 1. codes: (N,), of a picture only.

    `digest` is of the picture and all its captions, `content` of the picture alone; `text` is the
    caption, "" for a picture; `number` counts the captions of a picture from 1 and is 0 for the
    picture itself; `captions` says how many there are.
    """

    kind: Kind
    name: str
    number: int
    digest: str
    text: str
    vector: Vector
    codes: Ids | None
    captions: int = 0
    content: str = ""

    @property
    def key(self) -> str:
        """Its own within the index. No name holds a line feed, see `entries`."""
        return f"{self.name}\n{self.number}"

    @property
    def check(self) -> int:
        """CRC-32 of all the rest: finds damage, not malice."""
        parts = self.kind, self.key, self.digest, self.content, str(self.captions), self.text
        head = "\n".join(parts).encode()
        body = b"" if self.codes is None else self.codes.astype("<i4").tobytes()
        return zlib.crc32(body, zlib.crc32(self.vector.astype("<f4").tobytes(), zlib.crc32(head)))


@dataclass(frozen=True)
class Hit:
    """A found item. score: cosine between the query and it, in [-1, 1]. content: SHA-256 of its
    picture when that was indexed, in hex.
    """

    kind: Kind
    name: str
    text: str
    score: float
    content: str = ""
