"""Where a graph keeps its weights: only in files that the bundle lists.

An ONNX tensor may name another file, by a path, an offset and a length. A hand-made graph could so
make a runtime read any file of the machine into a model, or memory (ONNX Runtime has an address for
that). This reads just enough of the protobuf form to see every such name, without the onnx package:
a device that only runs bundles has none. A file that holds the word under which such names stand
and cannot be read to its end is refused. Other broken files are left to the runtime, which says so.

Two more ways to other code are closed: a file in ONNX Runtime's own format, which it tells by the
ending, and nodes that stand for a compiled file (EPContext).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmprod.errors import IntegrityError

# Message fields (onnx.proto3) on the way to a tensor: {message: {field: message}}.
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
VARINT, BYTES, GROUP, END_GROUP = 0, 2, 3, 4
FIXED = {1: 8, GROUP: 0, END_GROUP: 0, 5: 4}
"""Wire types, and the bytes of those that always have as many."""
DEEPEST = 100
"""Messages inside one another; protobuf gives up there too."""


KEY, CONTEXT = b"location", b"EPContext"
"""The key of every external file's name, and the operator that loads a compiled one."""
MOST_TAG = 2**32
"""Parsers disagree on the tags of fields above it: some cut them to 32 bits."""


class _Unreadable(Exception):
    """Not protobuf, or in a form that parsers may read in two ways."""


def check_external_data(root: Path, graph: str, weights: Mapping[str, int]) -> None:
    """Every file that the graph names is one of `weights` (path in the bundle -> bytes) and holds
    the part it names. Raises IntegrityError.
    """
    if not graph.endswith(".onnx"):
        raise _refusal(graph, "does not end in .onnx")
    folder, slash, _ = graph.rpartition("/")
    for about in _references(root / graph, graph):
        location = about.get("location", "")
        if "/" in location or f"{folder}{slash}{location}" not in weights:
            raise _refusal(graph, f"names the file {location!r}, which the bundle does not list")
        size = weights[f"{folder}{slash}{location}"]
        offset, length = (_number(graph, about.get(key, "0")) for key in ("offset", "length"))
        if offset + length > size:
            raise _refusal(
                graph, f"reads {location} up to byte {offset + length}; it has {size} bytes"
            )


def _refusal(graph: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{graph} {what}", hint="do not use this bundle: no export of mmprod writes such a graph"
    )


def _number(graph: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _refusal(graph, f"has the offset or length {text!r}")
    return int(text)


def _references(path: Path, graph: str) -> list[dict[str, str]]:
    """Each external tensor's keys and values. A key that stands twice is refused."""
    if path.stat().st_size == 0:
        return []
    found: list[dict[str, str]] = []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(CONTEXT) >= 0:
            raise _refusal(graph, f"has a node {CONTEXT.decode()}, which loads a compiled file")
        if data.find(KEY) < 0:  # saves a walk of most graphs
            return []
        try:
            for entries in _tensors(data, 0, len(data), "model", 0):
                about: dict[str, str] = {}
                for start, end in entries:
                    key, value = _entry(data, start, end)
                    if key in about:
                        raise _refusal(graph, f"gives a tensor two values of {key!r}")
                    about[key] = value
                found.append(about)
        except _Unreadable as error:
            raise _refusal(graph, "names other files in a form that cannot be read") from error
    return found


def _tensors(
    data: mmap.mmap, start: int, end: int, message: str, depth: int
) -> Iterator[list[tuple[int, int]]]:
    """Where the entries lie of each tensor that has any."""
    if depth > DEEPEST:
        raise _Unreadable
    children, entries = CHILDREN[message], []
    for field, kind, first, last in _fields(data, start, end):
        child = children.get(field)
        if child is None or kind != BYTES:
            continue
        if child == "entry":
            entries.append((first, last))
        else:
            yield from _tensors(data, first, last, child, depth + 1)
    if entries:
        yield entries


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """A key and its value; of a field that stands twice the last one counts."""
    parts = {1: "", 2: ""}
    for field, kind, first, last in _fields(data, start, end):
        if kind == BYTES and field in parts:
            parts[field] = data[first:last].decode("utf-8", "backslashreplace")
    return parts[1], parts[2]


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and place of each field outside groups. Raises _Unreadable."""
    place, groups = start, 0
    while place < end:
        tag, place = _varint(data, place, end)
        field, kind = tag >> 3, tag & 7
        groups += {GROUP: 1, END_GROUP: -1}.get(kind, 0)
        first, place = _value(data, kind, place, end)
        if place > end or field == 0 or groups < 0 or tag >= MOST_TAG:
            raise _Unreadable
        if not groups:
            yield field, kind, first, place
    if groups:
        raise _Unreadable


def _value(data: mmap.mmap, kind: int, place: int, end: int) -> tuple[int, int]:
    """Where the value of a field begins and ends. Raises _Unreadable."""
    if kind == VARINT:
        return place, _varint(data, place, end)[1]
    if kind == BYTES:
        size, first = _varint(data, place, end)
        return first, first + size
    if kind not in FIXED:
        raise _Unreadable
    return place, place + FIXED[kind]


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise _Unreadable
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _Unreadable
