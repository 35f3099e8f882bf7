"""Damaged and forged files: each is read for what it says, or refused; never anything else.

Plain damage (bits, cuts, splices) must always be refused. A forger who mends the checksum gets
behind it: then a file is accepted only if it is, byte for byte, what the writer would write for the
codes that came out.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from mmprod.bitstream import CodecId, Picture, Prior, describe, read_file, write_file
from mmprod.bitstream.crc import crc32c
from mmprod.errors import EnvironmentMissing, IntegrityError
from tests.bitstream.fakes import PRIORS, codec_id, picture, prior_of

MEMORY = 16 * 2**20
"""no fuzzed file may ask for more: pictures of these short payloads have few codes"""
CODEC = codec_id(12, 2)
READERS: dict[str, Prior] = {name: prior_of(name, CODEC) for name in PRIORS}


def originals() -> list[bytes]:
    sizes = [[(16, 16)], [(33, 9)], [(16, 16)] * 3, [(8, 8), (30, 5)]]
    files = []
    for prior in READERS.values():
        for index, group in enumerate(sizes):
            many = [picture(CODEC, *size, seed=i) for i, size in enumerate(group)]
            if index == 3:
                many = [Picture(p.codes, p.height, p.width, f"{p.height}.png") for p in many]
            files.append(write_file(many, CODEC, prior).data)
    return files


def damaged(data: bytes, files: list[bytes], rng: np.random.Generator) -> bytes:
    """One to three changes: bits, bytes, cuts, insertions, splices, and lies in the header."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        kind, at = rng.integers(8), int(rng.integers(max(len(out), 1)))
        other = files[rng.integers(len(files))]
        if kind == 0 and out:
            out[at] ^= 1 << rng.integers(8)
        elif kind == 1 and out:
            out[at] = rng.integers(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 5))]
        elif kind == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 5:
            out[at:] = other[int(rng.integers(len(other))) :]
        elif kind == 6 and len(out) > 16:
            out[int(rng.integers(2, 16))] = rng.choice([0, 1, 64, 127, 128, 255])
        elif kind == 7 and len(out) > 24:  # a length lie: a varint grows
            place = int(rng.integers(6, 20))
            out[place : place + 1] = bytes([out[place] | 128, rng.integers(1, 128)])
    return bytes(out)


def mended(data: bytes, rng: np.random.Generator) -> bytes:
    """As a forger would: magic and format right, checksum recomputed."""
    body = bytearray(data[:-4]) if len(data) > 7 else bytearray(b"\x9dQ\x11" + CODEC.tag + b"\x08")
    if rng.random() < 0.9:
        body[:2], body[2] = b"\x9dQ", 16 | body[2] & 15
        body[3:6] = CODEC.tag
    return bytes(body) + crc32c(bytes(body)).to_bytes(4, "big")


def read(data: bytes, codec: CodecId) -> bytes:
    """Read a file with the prior that it names, and write what came out."""
    prior = READERS[describe(data).prior]
    return write_file(read_file(data, codec, prior), codec, prior).data


def fuzz(count: int, seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    files = originals()
    tally = {"refused": 0, "exact": 0, "other runtime": 0, "behind the checksum": 0}
    for index in range(count):
        data = damaged(files[index % len(files)], files, rng)
        forged = index % 2 == 1
        if forged:
            data = mended(data, rng)
        start = time.perf_counter()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            assert read(data, CODEC) == data, f"seed {seed}, file {index} has two forms"
            assert forged or data in files, f"seed {seed}: damage {index} was not seen"
            tally["exact"] += 1
        except IntegrityError as error:
            assert error.hint and error.message
            tally["refused"] += 1
            tally["behind the checksum"] += "checksum" not in error.message and forged
        except EnvironmentMissing:
            # Only a forger gets here: the fingerprint is under the checksum too.
            shapes = [CODEC.shape(*size) for size in describe(data).sizes]
            assert forged and describe(data).prior == "fusion"
            assert data[6:8] != READERS["fusion"].fingerprint(shapes)
            tally["other runtime"] += 1
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY
        assert time.perf_counter() - start < 30, "a hang"
    return tally


@pytest.fixture(autouse=True)
def traced() -> object:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def check(tally: dict[str, int], count: int) -> None:
    assert tally["refused"] > 0.5 * count
    assert tally["behind the checksum"] > 0.1 * count, "the parser behind it must be reached"
    assert tally["exact"] > 0.01 * count, "some forgeries are files of other pictures"


def test_a_thousand_fuzzed_files() -> None:
    check(fuzz(1000, seed=1), 1000)


@pytest.mark.slow
def test_ten_thousand_fuzzed_files() -> None:
    check(fuzz(10_000, seed=2), 10_000)
