"""What a worker process and its parent say to each other: frames over two pipes.

    8 bytes  length of the head, little endian
    head     JSON: {"kind": ..., "arrays": [[name, type, shape], ...], ...}
    arrays   their bytes, one after the other, C order

Nothing is ever unpickled: a worker has a foreign engine inside, and what it says is only data. Head
and arrays have a largest size, types are plain numbers.
"""

from __future__ import annotations

import json
import math
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

MOST_HEAD = 1 << 20
MOST_ARRAYS = 1 << 33
_LENGTH = 8
_PIECE = 1 << 20


class NoAnswer(Exception):
    """Nothing came, or could be sent, in time."""


class Closed(Exception):
    """The other side is gone."""


class Nonsense(Exception):
    """What came is no frame."""


@dataclass(frozen=True)
class Frame:
    """One message: its kind, further JSON values, and arrays by name."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


class Pipes:
    """One end of the connection: frames out through one descriptor, in through the other."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._in, self._out = read_from, write_to
        os.set_blocking(read_from, False)
        os.set_blocking(write_to, False)

    def send(self, frame: Frame, timeout_s: float | None = None) -> None:
        """Raises NoAnswer when the other side does not take it in time, Closed when it is gone."""
        arrays = {name: np.asarray(value, order="C") for name, value in frame.arrays.items()}
        table = [[name, value.dtype.str, list(value.shape)] for name, value in arrays.items()]
        head = json.dumps({"kind": frame.kind, "arrays": table, **frame.values}).encode()
        end = _end(timeout_s)
        self._write(len(head).to_bytes(_LENGTH, "little") + head, end)
        for value in arrays.values():
            self._write(value.reshape(-1).view(np.uint8).data if value.size else b"", end)

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Raises NoAnswer, Closed, or Nonsense for what is not a frame."""
        end = _end(timeout_s)
        length = int.from_bytes(self._read(_LENGTH, end), "little")
        if length > MOST_HEAD:
            raise Nonsense(f"a head of {length} bytes")
        try:
            head = json.loads(bytes(self._read(length, end)))
            kind, table = str(head.pop("kind")), head.pop("arrays")
            plan = [(str(name), _plain(kind_of), _shape(shape)) for name, kind_of, shape in table]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Nonsense(str(error)[:200]) from error
        if sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in plan) > MOST_ARRAYS:
            raise Nonsense("arrays without measure")
        arrays = {}
        for name, dtype, shape in plan:
            raw = self._read(dtype.itemsize * math.prod(shape), end)
            arrays[name] = np.frombuffer(raw, dtype).reshape(shape)
        return Frame(kind, head, arrays)

    def _write(self, data: Any, end: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(lambda left: select.select([], [self._out], [], left)[1], end)
            try:
                view = view[os.write(self._out, view[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise Closed from error

    def _read(self, size: int, end: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait(lambda left: select.select([self._in], [], [], left)[0], end)
            try:
                piece = os.read(self._in, min(size - len(data), _PIECE))
            except BlockingIOError:
                continue
            if not piece:
                raise Closed
            data += piece
        return data

    def _wait(self, ready: Callable[[float | None], object], end: float) -> None:
        left = None if end == math.inf else max(0.0, end - time.monotonic())
        if not ready(left):
            raise NoAnswer


def _end(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s


def _plain(text: object) -> np.dtype[Any]:
    """A type of plain numbers. Raises ValueError for any other."""
    dtype = np.dtype(str(text))
    if dtype.kind not in "biuf" or dtype.itemsize > _LENGTH:
        raise ValueError(f"arrays of type {dtype} are not taken")
    return dtype


def _shape(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"no shape: {sizes!r:.80}")
    return tuple(sizes)


def spec_to_json(spec: GraphSpec) -> dict[str, Any]:
    """A graph's description as JSON data."""
    return asdict(spec)


def spec_from_json(raw: Mapping[str, Any]) -> GraphSpec:
    """What `spec_to_json` gave."""

    def tensor(item: Mapping[str, Any]) -> Tensor:
        shape = tuple(Dim(**size) if isinstance(size, dict) else size for size in item["shape"])
        return Tensor(**{**item, "shape": shape})

    ports = {side: tuple(tensor(item) for item in raw[side]) for side in ("inputs", "outputs")}
    return GraphSpec(**{**raw, **ports})
