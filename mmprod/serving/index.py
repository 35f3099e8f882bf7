"""The pictures that the model `search` finds: an index of `mmprod search`, of this very bundle."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.manifest import sha256_bytes
from mmprod.search.about import files_of
from mmprod.search.table import Table, open_table
from mmprod.serving.kit import Hit
from mmprod.serving.settings import MIB

GRAPHS = ("codec_encode", "embed_image", "embed_text")
"""graphs that make the vector of a query"""
MAX_FILE, MAX_FILES = 4 * MIB, 32 * MIB
"""bytes of a picture that goes with an answer, and of all of them together"""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


class PictureIndex:
    """An opened index. Several threads may search; each search sees what others have written."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def check(self, bundle: Bundle, precisions: Mapping[str, str]) -> None:
        """Raise unless the vectors of this bundle and of the index are of one space: the same
        weights and tokenizer (IntegrityError), by graphs of the same precision, all of which are
        served (ConfigError). precisions: of what is served, by graph.
        """
        about, root = self._table.about, str(bundle.root)
        about.check_files(files_of(bundle.provenance, root), self._table.place, root)
        for graph in GRAPHS:
            precision = precisions.get(graph, "")
            if precision != about.precision:
                found = f"served in {precision}" if precision else "not served"
                raise ConfigError(
                    f"{self._table.place} was made by graphs in {about.precision}, but {graph} is "
                    f"{found}",
                    hint=f"--precision {about.precision}, or make an index with other graphs",
                )

    def search(self, embedding: npt.NDArray[np.float32], count: int) -> list[Hit]:
        """embedding (E,) of length 1 -> the nearest pictures, best first, with their files."""
        found, left = [], MAX_FILES
        for hit in self._table.nearest(embedding, count, "image"):
            picture = picture_of(hit.name, hit.content, min(left, MAX_FILE))
            left -= len(picture)
            found.append(Hit(hit.name, hit.score, picture))
        return found


def open_index(place: str) -> PictureIndex:
    """Raises as `open_table`."""
    return PictureIndex(open_table(place))


def picture_of(name: str, content: str, most: int) -> bytes:
    """The file of a picture, if it is still what was indexed (SHA-256 `content`), a PNG, JPEG or
    WebP, and of at most `most` bytes; else b"".
    """
    try:
        # Not to wait where a pipe took the file's place.
        handle = os.open(Path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            data = _read(handle, most + 1) if regular else b""
        finally:
            os.close(handle)
    except (OSError, ValueError):
        return b""
    webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    known = webp or data.startswith((PNG, JPEG))
    return data if known and len(data) <= most and sha256_bytes(data) == content else b""


def _read(handle: int, most: int) -> bytes:
    with os.fdopen(handle, "rb", closefd=False) as file:
        return file.read(most)
