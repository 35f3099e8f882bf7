"""Writing safetensors files piece by piece: bounded memory, hashed while written, flushed to disk.

The library's own writer needs every tensor whole in memory and a second read for the hash. Files
are read with the library. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element of each type, by the format's names."""

CHUNK = 1 << 22
"""bytes handed to the disk and to the hash at a time"""


@dataclass(frozen=True)
class TensorSource:
    """One tensor to write. `chunks` gives its bytes in order, little-endian, row-major."""

    name: str
    dtype: str
    """a key of SIZES"""
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[memoryview]]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class Written:
    """What became of a file: SHA-256 in hex, size in bytes."""

    sha256: str
    bytes: int


def write_tensors(
    path: Path, sources: Sequence[TensorSource], metadata: Mapping[str, str]
) -> Written:
    """Write a safetensors file, flush it to disk. Equal contents give equal bytes as long as
    `metadata` has one entry at most (several have no order).

    Raises ValueError when a source gives another number of bytes than its shape says, OSError.
    """
    ordered = sorted(sources, key=lambda s: (-SIZES[s.dtype], s.name))  # keeps data aligned
    digest, total = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as stream:
        for data in _contents(ordered, metadata):
            digest.update(data)
            written = 0
            while written < len(data):  # an unbuffered write may take a part only
                written += stream.write(data[written:])
            total += len(data)
        os.fsync(stream.fileno())
    return Written(digest.hexdigest(), total)


def _contents(sources: Sequence[TensorSource], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    yield memoryview(_header(sources, metadata))
    for source in sources:
        given = 0
        for chunk in source.chunks():
            data = chunk.cast("B") if chunk.format != "B" else chunk
            given += len(data)
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]
        if given != source.bytes:
            raise ValueError(f"{source.name}: {given} bytes given, {source.bytes} expected")


def _header(sources: Sequence[TensorSource], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for source in sources:
        table[source.name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": [start, start + source.bytes],
        }
        start += source.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
