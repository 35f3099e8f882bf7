"""Tensors of the protocol to arrays and back; whatever is wrong is refused in words."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprod.serving.model import Port
from mmprod.serving.refusal import Refused
from mmprod.serving.tensors import (
    Sent,
    as_elements,
    json_data,
    raw_bytes,
    read_inputs,
    split_elements,
)

IDS = Port("ids", "INT32", (-1, 3))
LEVELS = Port("levels", "UINT8", (2,))
NOISE = Port("noise", "FP32", (-1,))
WORDS = Port("words", "BYTES", (-1,), "text")
PICTURE = Port("picture", "BYTES", (1,), "picture", optional=True)


def read(port: Port, **sent: Any) -> Any:
    given_ = {"name": port.name, "datatype": port.datatype, "shape": (1, 3), **sent}
    return read_inputs([port], [Sent(**given_)])[port.name]


@pytest.mark.parametrize("data", [[1, 2, 3], [[1, 2, 3]], [[[1], [2], [3]]]])
def test_lists_may_be_nested(data: Any) -> None:
    found = read(IDS, data=data)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("port", "sent", "words"),
    [
        (IDS, {"data": [1, 2]}, "2 elements, its shape says 3"),
        (IDS, {"data": [1, 2, 3, 4]}, "4 elements"),
        (IDS, {"data": [1, 2, 3.0]}, "whole numbers"),
        (IDS, {"data": [1, 2, True]}, "whole numbers"),
        (IDS, {"data": [1, 2, "3"]}, "whole numbers"),
        (IDS, {"data": [1, 2, None]}, "whole numbers"),
        (IDS, {"data": [[1, 2], 3]}, "different depth"),
        (IDS, {"data": [1, 2, 2**31]}, "no INT32"),
        (IDS, {"data": [1, 2, 10**400]}, "no INT32"),
        (IDS, {"datatype": "INT64", "data": [1, 2, 3]}, "is INT32, not INT64"),
        (IDS, {"shape": (3,), "data": [1, 2, 3]}, "has the shape"),
        (IDS, {"shape": (1, 2), "data": [1, 2]}, "has the shape"),
        (IDS, {"shape": (-1, 3), "data": []}, "has the shape"),
        (IDS, {"raw": b"123"}, "3 bytes, not 12"),
        (IDS, {}, "data or bytes"),
        (IDS, {"data": [1, 2, 3], "raw": bytes(12)}, "data or bytes"),
        (LEVELS, {"shape": (2,), "data": [0, 256]}, "no UINT8"),
        (LEVELS, {"shape": (2,), "data": [0, -1]}, "no UINT8"),
        (NOISE, {"shape": (1,), "data": [1e300]}, "infinite"),
        (NOISE, {"shape": (1,), "data": [float("nan")]}, "NaN"),
        (NOISE, {"shape": (1,), "raw": np.array([np.inf], "<f4").tobytes()}, "infinite"),
        (WORDS, {"shape": (1,), "data": [1]}, "takes strings"),
        (WORDS, {"shape": (1,), "data": ["\ud800"]}, "is no text"),
        (WORDS, {"shape": (2,), "raw": b"\x01\0\0\0a"}, "1 elements"),
        (WORDS, {"shape": (1,), "raw": b"\x02\0\0\0a"}, "ends inside"),
        (WORDS, {"shape": (1,), "raw": b"\x02\0"}, "ends inside"),
        (WORDS, {"shape": (1,), "raw": b"\xff\xff\xff\xff"}, "ends inside"),
        (PICTURE, {"shape": (1,), "data": ["!!"]}, "is no base64"),
        (PICTURE, {"shape": (1,), "data": ["ä"]}, "is no base64"),
    ],
)
def test_what_is_wrong_is_refused(port: Port, sent: Any, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        read(port, **sent)
    assert caught.value.status == 400


def test_elements_are_not_taken_apart_beyond_their_count() -> None:
    sent = Sent("words", "BYTES", (2,), raw=bytes(4 * 2_000_000))  # each of length 0
    start = time.process_time()
    with pytest.raises(Refused, match="more elements than its shape says: 2"):
        read_inputs([WORDS], [sent])
    assert time.process_time() - start < 0.1


def test_inputs_are_those_of_the_ports() -> None:
    sent = Sent("ids", "INT32", (0, 3), data=[])
    with pytest.raises(Refused, match="'noise' is missing"):
        read_inputs([IDS, NOISE], [sent])
    with pytest.raises(Refused, match="no input 'ids'"):
        read_inputs([NOISE], [sent])
    with pytest.raises(Refused, match="given twice"):
        read_inputs([IDS], [sent, sent])
    assert set(read_inputs([IDS, PICTURE], [sent])) == {"ids"}


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_elements_survive_as_bytes(values: list[bytes]) -> None:
    raw = raw_bytes(as_elements(values))
    assert split_elements(raw, len(values)) == values
    port = Port("files", "BYTES", (-1,), "file")
    again = read_inputs([port], [Sent("files", "BYTES", (len(values),), raw=memoryview(raw))])
    assert list(again["files"]) == values
    data = json_data(port, as_elements(values))
    again = read_inputs([port], [Sent("files", "BYTES", (len(values),), data=data)])
    assert list(again["files"]) == values
    assert data == [base64.b64encode(value).decode() for value in values]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3))
def test_numbers_survive_as_bytes_and_as_json(values: list[int]) -> None:
    array = np.array([values], np.int32)
    np.testing.assert_array_equal(read(IDS, raw=raw_bytes(array)), array)
    np.testing.assert_array_equal(read(IDS, data=json_data(IDS, array).tolist()), array)
