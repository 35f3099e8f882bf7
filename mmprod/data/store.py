"""The prepared data set on disk: one memory-mapped Arrow file per split, and a manifest.

    root/data.json             format, source, size, counts, seed, versions, licences, file hashes
    root/<split>/data.arrow    Arrow stream: key, image, captions, attributes, weight

Pictures are stored as raw RGB, all of one size: a batch is one gather from the memory map, some
sixty times cheaper than decoding PNG, so training needs no loader processes; photographs grow by
less than a factor of two. The files are ordinary Arrow streams, which
`datasets.Dataset.from_file` opens too. `writer.py` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import FileEntry, read_json, sha256_file, verify_files

FORMAT = 1
MANIFEST = "data.json"
_REBUILD = "make it again with `mmprod data prepare`"


class Split:
    """One split of a prepared data set, memory-mapped.

    `size`: height and width of every picture in pixels.
    """

    def __init__(self, table: pa.Table, size: int, weighted: bool) -> None:
        self.size = size
        self._table = table
        self._weighted = weighted
        chunks = table.column("image").chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._pictures = [_pixels(chunk, size) for chunk in chunks]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Sampling weights (N) > 0, or None when every sample weighs the same."""
        if not self._weighted:
            return None
        return np.asarray(self._table.column("weight").to_numpy(), np.float64)

    def images(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """indices (B) -> pictures (B, H, W, 3) uint8 RGB, a copy."""
        self._check(indices)
        batch = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        for place, (index, chunk) in enumerate(zip(indices, chunks, strict=True)):
            batch[place] = self._pictures[chunk][index - self._starts[chunk]]
        return batch

    def captions(
        self, indices: NDArray[np.integer], languages: Sequence[str], seed: int
    ) -> list[str]:
        """indices (B) -> one caption each, drawn from those in `languages` by a hash of (seed,
        index).

        Captions of unknown language ("") always count. Raises ConfigError when a sample has none.
        """
        chosen = []
        for index, texts in zip(indices, self.references(indices, languages), strict=True):
            if not texts:
                raise ConfigError(
                    f"sample {index} has no caption in {', '.join(languages) or 'no language'}",
                    hint="choose languages that the data set has: see `mmprod data stats`",
                )
            chosen.append(texts[_mix(seed, int(index)) % len(texts)])
        return chosen

    def references(self, indices: NDArray[np.integer], languages: Sequence[str]) -> list[list[str]]:
        """indices (B) -> every caption of each in `languages` or of unknown language, in order."""
        rows = map(json.loads, self._rows("captions", indices))
        return [[c["text"] for c in row if c["language"] in ("", *languages)] for row in rows]

    def all_captions(self, languages: Sequence[str]) -> Iterator[str]:
        """Every caption of the split in `languages` (or of unknown language), in order:

        Food for the tokenizer.
        """
        for row in self._table.column("captions"):
            for caption in json.loads(row.as_py()):
                if caption["language"] in ("", *languages):
                    yield caption["text"]

    def texts(self, indices: NDArray[np.integer], languages: Sequence[str]) -> list[list[str]]:
        """indices (B) -> all captions of each sample in `languages` (or of unknown language)."""
        rows = self._rows("captions", indices)
        return [
            [c["text"] for c in json.loads(r) if c["language"] in ("", *languages)] for r in rows
        ]

    def attributes(self, indices: NDArray[np.integer]) -> list[dict[str, str]]:
        """indices (B) -> attributes of each sample, {} where the source has none."""
        return [json.loads(row) if row else {} for row in self._rows("attributes", indices)]

    def keys(self, indices: NDArray[np.integer]) -> list[str]:
        """indices (B) -> the key of each sample, unique within the data set."""
        return self._rows("key", indices)

    def _rows(self, column: str, indices: NDArray[np.integer]) -> list[str]:
        self._check(indices)
        values = self._table.column(column)
        return [values[int(index)].as_py() for index in indices]

    def _check(self, indices: NDArray[np.integer]) -> None:
        if len(indices) and not 0 <= int(np.min(indices)) <= int(np.max(indices)) < len(self):
            raise IndexError(f"indices must lie in [0, {len(self)})")


def open_split(root: Path, split: str) -> Split:
    """Open one split; checks the manifest and the file's size (`verify_data` checks the hashes
    too).

    Raises ConfigError for a split that does not exist, IntegrityError for a missing or damaged data
    set.
    """
    manifest = read_manifest(root)
    if split not in manifest["splits"]:
        raise ConfigError(
            f"{root} has no split {split!r}", hint=f"splits: {', '.join(manifest['splits'])}"
        )
    path = root / split / "data.arrow"
    entry = {entry.path: entry for entry in _entries(manifest)}.get(f"{split}/data.arrow")
    if entry is None or not path.is_file() or path.stat().st_size != entry.bytes:
        raise IntegrityError(
            f"{path} is missing or does not have its size in {MANIFEST}", hint=_REBUILD
        )
    size = int(manifest["size"])
    with _arrow_errors(path):
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    if table.schema != schema(size) or table.num_rows != manifest["splits"][split]["count"]:
        raise IntegrityError(f"{path} does not hold what {MANIFEST} says", hint=_REBUILD)
    return Split(table, size, bool(manifest["splits"][split]["weighted"]))


def read_manifest(root: Path) -> dict[str, Any]:
    """The checked content of data.json.

    Raises IntegrityError when it is missing, damaged or of another format.
    """
    manifest = read_json(root / MANIFEST, hint=_REBUILD)
    needed = {"kind", "format", "source", "size", "splits", "files"}
    if not isinstance(manifest, dict) or not needed <= set(manifest) or manifest["kind"] != "data":
        raise IntegrityError(f"{root / MANIFEST} is not the manifest of a data set", hint=_REBUILD)
    if manifest["format"] != FORMAT:
        raise IntegrityError(
            f"{root} has data format {manifest['format']}, this version reads format {FORMAT}",
            hint=_REBUILD,
        )
    return manifest


def verify_data(root: Path) -> dict[str, Any]:
    """Check presence, size and SHA-256 of every file.

    Returns the manifest. Raises IntegrityError.
    """
    manifest = read_manifest(root)
    verify_files(root, _entries(manifest), hint=_REBUILD)
    return manifest


def data_fingerprint(root: Path) -> str:
    """SHA-256 of the manifest, which itself holds the SHA-256 of every file."""
    read_manifest(root)
    return sha256_file(root / MANIFEST)


def _entries(manifest: dict[str, Any]) -> list[FileEntry]:
    try:
        return [FileEntry(**entry) for entry in manifest["files"]]
    except TypeError as error:
        raise IntegrityError(
            f"{MANIFEST} lists its files in an unknown form", hint=_REBUILD
        ) from error


def schema(size: int) -> pa.Schema:
    return pa.schema(
        [
            ("key", pa.string()),
            ("image", pa.binary(size * size * 3)),
            ("captions", pa.string()),
            ("attributes", pa.string()),
            ("weight", pa.float32()),
        ]
    )


def _pixels(chunk: pa.FixedSizeBinaryArray, size: int) -> NDArray[np.uint8]:
    """A view (n, H, W, 3) of an Arrow chunk's memory."""
    flat = np.frombuffer(chunk.buffers()[1], np.uint8)
    width = size * size * 3
    return flat[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(
        -1, size, size, 3
    )


def _mix(seed: int, index: int) -> int:
    """A 32-bit hash of (seed, index) (SplitMix64 finalizer)."""
    mask = (1 << 64) - 1
    x = (index + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return (x ^ x >> 31) >> 32


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint=_REBUILD) from error
