"""Tensors of the Open Inference Protocol <-> NumPy arrays: JSON lists, raw bytes, BYTES elements.

Whatever a client sends is checked against the port before an array is made of it: type of every
number, count, range; a list is never handed to NumPy to guess what it holds. No pickle anywhere.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.serving.model import DATATYPES, Port
from mmprod.serving.refusal import Refused, bad

DTYPES = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}
BYTES = "BYTES"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Sent:
    """One input as it came: `data`, a list, or `raw`, its bytes in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any] | None = None
    raw: bytes | memoryview | None = None


def read_inputs(ports: Sequence[Port], sent: Sequence[Sent]) -> dict[str, Array]:
    """Arrays by name. Raises Refused for anything that these ports do not take."""
    known = {port.name: port for port in ports}
    names = [tensor.name for tensor in sent]
    for name in names:
        if name not in known:
            raise bad(f"there is no input {name[:64]!r}; inputs: {', '.join(known)}")
    if len(set(names)) != len(names):
        raise bad("an input is given twice")
    for port in ports:
        if not port.optional and port.name not in names:
            raise bad(f"the input {port.name!r} is missing")
    return {tensor.name: _read(known[tensor.name], tensor) for tensor in sent}


def _read(port: Port, sent: Sent) -> Array:
    if sent.datatype != port.datatype:
        raise bad(f"input {port.name!r} is {port.datatype}, not {sent.datatype[:16]}")
    fits = len(sent.shape) == len(port.shape) and all(
        size >= 0 and wanted in (-1, size)
        for size, wanted in zip(sent.shape, port.shape, strict=True)
    )
    if not fits:
        raise bad(f"input {port.name!r} has the shape {list(port.shape)}, -1: any number")
    count = math.prod(sent.shape)
    if (sent.data is None) == (sent.raw is None):
        raise bad(f"input {port.name!r} needs either data or bytes after the JSON")
    if port.datatype == BYTES:
        return _elements(port, sent, count).reshape(sent.shape)
    value = _from_raw(port, sent.raw, count) if sent.data is None else _numbers(port, sent, count)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise bad(f"input {port.name!r} holds NaN or an infinite number")
    return value.reshape(sent.shape)


def _from_raw(port: Port, raw: bytes | memoryview | None, count: int) -> Array:
    dtype = DTYPES[port.datatype]
    data = raw or b""
    if len(data) != count * dtype.itemsize:
        raise bad(f"input {port.name!r} has {len(data)} bytes, not {count * dtype.itemsize}")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)


def _numbers(port: Port, sent: Sent, count: int) -> Array:
    values = _flat(port, sent.data or (), count)
    dtype = DTYPES[port.datatype]
    kinds = {int} if dtype.kind in "iu" else {int, float}
    if not set(map(type, values)) <= kinds:
        what = "whole numbers" if dtype.kind in "iu" else "numbers"
        raise bad(f"input {port.name!r} takes {what}")
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    except OverflowError as error:
        raise bad(f"input {port.name!r} holds a number that is no {port.datatype}") from error


def _flat(port: Port, data: Sequence[Any], count: int) -> list[Any]:
    values = list(data) if len(data) <= count else []
    while values and isinstance(values[0], list):
        if not all(isinstance(part, list) for part in values):
            raise bad(f"input {port.name!r} holds lists of different depth")
        values = list(itertools.chain.from_iterable(values))
    if len(values) != count:
        found = max(len(values), len(data))
        raise bad(f"input {port.name!r} has {found} elements, its shape says {count}")
    return values


def _elements(port: Port, sent: Sent, count: int) -> Array:
    """BYTES: text as it is in JSON; pictures and files in base64 there, as they are elsewhere."""
    if sent.data is None:
        found = split_elements(sent.raw or b"", count)
        if len(found) != count:
            raise bad(f"input {port.name!r} has {len(found)} elements, its shape says {count}")
    else:
        found = [_element(port, value) for value in _flat(port, sent.data, count)]
    return as_elements(found)


def _element(port: Port, value: object) -> bytes:
    if isinstance(value, bytes):  # gRPC
        return value
    if not isinstance(value, str):
        raise bad(f"input {port.name!r} takes strings")
    try:
        if port.content == "text":
            return value.encode()
        return base64.b64decode(value, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        what = "text" if port.content == "text" else "base64"
        raise bad(f"input {port.name!r} is no {what}") from error


def as_elements(values: Iterable[bytes]) -> Array:
    """(n,) object, each element bytes."""
    found = list(values)
    out = np.empty(len(found), object)
    out[:] = found
    return out


def split_elements(raw: bytes | memoryview, most: int) -> list[bytes]:
    """The elements of a BYTES tensor: each has its length before it, 4 bytes, little-endian. Raises
    Refused for a broken one and for more elements than `most`.
    """
    found, place = list[bytes](), 0
    while place < len(raw):
        if len(found) == most:
            raise bad(f"a BYTES tensor has more elements than its shape says: {most}")
        if place + _LENGTH.size > len(raw):
            raise _broken()
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if place + length > len(raw):
            raise _broken()
        found.append(bytes(raw[place : place + length]))
        place += length
    return found


def _broken() -> Refused:
    return bad("a BYTES tensor ends inside an element; each begins with its length in 4 bytes")


def raw_bytes(value: Array) -> bytes:
    """A tensor as bytes in row-major order, little-endian."""
    if value.dtype == object:
        return b"".join(_LENGTH.pack(len(element)) + element for element in value.ravel())
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()


def json_data(port: Port, value: Array) -> Any:
    """A tensor as data for JSON: a flat list of strings, or an array of numbers."""
    if value.dtype != object:
        return np.ascontiguousarray(value).ravel()
    if port.content == "text":
        return [element.decode("utf-8", "replace") for element in value.ravel()]
    return [base64.b64encode(element).decode() for element in value.ravel()]
