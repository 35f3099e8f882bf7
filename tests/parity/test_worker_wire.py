"""Frames over pipes: what goes in comes out, and what is no frame is refused."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mmprod.parity.worker_wire import (
    MOST_HEAD,
    Closed,
    Frame,
    NoAnswer,
    Nonsense,
    Pipes,
    spec_from_json,
    spec_to_json,
)
from tests.parity.toy import SPECS


@pytest.fixture
def line() -> Iterator[tuple[Pipes, Pipes, int]]:
    """Two ends of a connection, and the descriptor that the second one writes to."""
    (a_in, b_out), (b_in, a_out) = os.pipe(), os.pipe()
    yield Pipes(a_in, a_out), Pipes(b_in, b_out), b_out
    for descriptor in (a_in, a_out, b_in, b_out):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_arrays_of_every_kind_arrive_whole(line: tuple[Pipes, Pipes, int]) -> None:
    one, other, _ = line
    arrays = {
        "pixels": np.arange(3 << 20, dtype=np.uint8).reshape(3, -1),
        "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
        "scalar": np.float32(1.5) * np.ones((), np.float32),
        "empty": np.zeros((0, 5), np.float32),
        "nan": np.array([np.nan, -0.0, np.inf], np.float32),
    }
    sender = threading.Thread(target=one.send, args=(Frame("run", {"a": [1]}, arrays), 10))
    sender.start()
    found = other.receive(10)
    sender.join()
    assert (found.kind, found.values) == ("run", {"a": [1]})
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype and found.arrays[name].shape == value.shape
        assert found.arrays[name].tobytes() == np.ascontiguousarray(value).tobytes()


def test_silence_and_a_side_that_does_not_read(line: tuple[Pipes, Pipes, int]) -> None:
    one, _, _ = line
    with pytest.raises(NoAnswer):
        one.receive(0.05)
    with pytest.raises(NoAnswer):
        one.send(Frame("run", arrays={"x": np.zeros(1 << 22, np.uint8)}), 0.05)


def test_a_side_that_is_gone(line: tuple[Pipes, Pipes, int]) -> None:
    one, _, writes = line
    os.write(writes, (5).to_bytes(8, "little") + b"{")
    os.close(writes)
    with pytest.raises(Closed):
        one.receive(5)


@pytest.mark.parametrize(
    "head",
    [
        b"not json",
        b"[]",
        json.dumps({"kind": "x"}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "O", [1]]]}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "S8", [1]]]}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "<f4", [-1]]]}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "<f4", [True]]]}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "<f4", [1 << 40]]]}).encode(),
        json.dumps({"kind": "x", "arrays": [["a", "nothing", [1]]]}).encode(),
    ],
)
def test_what_is_no_frame_is_refused(line: tuple[Pipes, Pipes, int], head: bytes) -> None:
    one, _, writes = line
    os.write(writes, len(head).to_bytes(8, "little") + head)
    with pytest.raises(Nonsense):
        one.receive(5)


def test_a_head_without_measure_is_refused(line: tuple[Pipes, Pipes, int]) -> None:
    one, _, writes = line
    os.write(writes, (MOST_HEAD + 1).to_bytes(8, "little"))
    with pytest.raises(Nonsense, match="head of"):
        one.receive(5)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_graph_s_description_survives(name: str) -> None:
    raw = json.loads(json.dumps(spec_to_json(SPECS[name])))
    assert spec_from_json(raw) == SPECS[name]
