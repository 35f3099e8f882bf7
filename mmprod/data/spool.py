"""Pictures on disk between decoding them and knowing which split they belong to."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


class Spool:
    """A temporary file of pictures of one size; gone when its block is left."""

    def __init__(self, folder: Path, size: int) -> None:
        self._shape = (size, size, 3)
        self._bytes = size * size * 3
        self._count = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, picture: NDArray[np.uint8]) -> tuple[int, bytes]:
        """Keep one picture (size, size, 3) uint8.

        Returns its place and the SHA-256 of its pixels.
        """
        content = picture.tobytes()
        if len(content) != self._bytes:
            raise ValueError(f"picture {picture.shape}, expected {self._shape}")
        self._file.seek(self._count * self._bytes)
        self._file.write(content)
        self._count += 1
        return self._count - 1, hashlib.sha256(content).digest()

    def read(self, place: int) -> NDArray[np.uint8]:
        """The picture (size, size, 3) uint8 at a place."""
        self._file.seek(place * self._bytes)
        return np.frombuffer(self._file.read(self._bytes), np.uint8).reshape(self._shape)
