"""Bytes of a file: one form each, every field checked, limits before anything is made."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

from mmprod.bitstream import container, describe
from mmprod.bitstream.container import MAX_FILE_BYTES, Header, build, parse
from mmprod.bitstream.crc import crc32c
from mmprod.bitstream.names import NOT_IN_NAMES
from mmprod.errors import ConfigError, IntegrityError

TAG = b"\x01\x02\x03"
SQUARE = Header("raw", TAG, ((64, 64),))
WIDE = Header("static", TAG, ((64, 300),))
NEURAL = Header("fusion", TAG, ((64, 64),), (), b"\x20\x01", b"\x07\x08\x09")
PACK = Header("static", TAG, ((64, 64),) * 5)
MIXED = Header("static", TAG, ((64, 64), (1, 3000)), ("a.png", "ü 2.png"))
ALL = (SQUARE, WIDE, NEURAL, PACK, MIXED, dataclasses.replace(MIXED, names=()))


def sealed(body: bytes) -> bytes:
    return body + crc32c(body).to_bytes(4, "big")


@pytest.mark.parametrize("header", ALL)
@pytest.mark.parametrize("payload", [b"", b"\x00", bytes(range(80))])
def test_round_trip(header: Header, payload: bytes) -> None:
    assert parse(build(header, payload)) == (header, payload)


def test_headers_are_short() -> None:
    assert len(build(SQUARE, b"")) == 11
    assert len(build(dataclasses.replace(SQUARE, sizes=((64, 48),)), b"")) == 12
    assert len(build(WIDE, b"")) == 13
    assert len(build(NEURAL, b"")) == 16
    assert len(build(dataclasses.replace(PACK, sizes=((64, 64),) * 1000), b"")) == 15


def test_the_bytes_are_those_of_the_document() -> None:
    assert build(WIDE, b"\xaa").hex().startswith("9d511401020340ac02aa")
    assert build(NEURAL, b"\xaa").hex().startswith("9d5119010203200107080940aa")
    assert build(MIXED, b"").hex().startswith("9d51160102030102404001b81705")


def test_describe() -> None:
    about = describe(build(MIXED, bytes(80)))
    assert (about.format, about.prior, about.codec, about.runtime) == (1, "static", "010203", "any")
    assert about.sizes == MIXED.sizes and about.names == MIXED.names
    assert about.payload_bytes == 80 and about.file_bytes == 80 + 17 + 15
    assert about.bits_per_pixel == pytest.approx(8 * 112 / (64 * 64 + 3000))
    assert describe(build(NEURAL, b"")).runtime == "PyTorch"


@pytest.mark.parametrize("header", ALL)
def test_every_bit_and_every_length_is_checked(header: Header) -> None:
    data = build(header, bytes(range(20)))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError) as caught:
            parse(bytes(changed))
        assert caught.value.hint
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            parse(data[:length])
    for extra in (b"\0", b"\x9dQ", data):
        with pytest.raises(IntegrityError):
            parse(data + extra)


def cases() -> list[tuple[str, bytes]]:
    """Bodies that are wrong although their checksum will be right, and what the error says."""
    start = b"\x9dQ"
    return [
        ("not a picture file", b"\x89P\x11" + TAG + b"\x40" + bytes(4)),
        ("format 2, this version reads format 1", start + b"\x21" + TAG + b"\x40"),
        ("format 0", start + b"\x01" + TAG + b"\x40"),
        ("prior number 3", start + b"\x1d" + TAG + b"\x40"),
        ("a picture of 0 x 0", start + b"\x11" + TAG + b"\0"),
        ("a picture of 64 x 0", start + b"\x10" + TAG + b"\x40\0"),
        ("a picture of 65537 x", start + b"\x11" + TAG + b"\x81\x80\x04"),
        ("a picture of 65536 x 65536", start + b"\x11" + TAG + b"\x80\x80\x04"),
        ("larger than any allowed", start + b"\x11" + TAG + b"\x80\x80\x84\x01"),
        ("not written in its shortest form", start + b"\x11" + TAG + b"\xc0\0"),
        ("square picture is not marked", start + b"\x10" + TAG + b"\x40\x40"),
        ("ends inside the width", start + b"\x10" + TAG + b"\x40"),
        ("ends inside the check value", start + b"\x19" + TAG + b"\x01\x02\x03\x04"),
        ("unknown flags 0x2", start + b"\x13" + TAG + b"\x02\x02\x40\x40"),
        ("a pack of 1 pictures", start + b"\x13" + TAG + b"\x00\x01\x40\x40"),
        ("a pack of 0 pictures", start + b"\x13" + TAG + b"\x01\x00\x40\x40"),
        ("a pack of 65537", start + b"\x13" + TAG + b"\x00\x81\x80\x04\x40\x40"),
        ("not marked as such", start + b"\x12" + TAG + b"\x00\x02\x40\x40\x40\x40"),
        ("ends inside a height", start + b"\x12" + TAG + b"\x00\x03\x40\x40\x40\x41"),
        ("ends inside a name", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x05abc"),
        ("not UTF-8", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x02\xff\xfe"),
        ("no plain file name", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x03a/b"),
        ("no plain file name", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x02.."),
        ("no plain file name", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x00"),
        ("no plain file name", start + b"\x13" + TAG + b"\x01\x01\x40\x40\x02a\n"),
        ("1 different names", start + b"\x13" + TAG + b"\x01\x02\x40\x40\x01a\x01a"),
        ("268468224 pixels", start + b"\x13" + TAG + b"\x00\x82\x80\x01\x80\x01\x80\x01"),
    ]


@pytest.mark.parametrize(("message", "body"), cases())
def test_wrong_fields_are_refused_behind_a_right_checksum(message: str, body: bytes) -> None:
    with pytest.raises(IntegrityError, match=message) as caught:
        parse(sealed(body))
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 5, 10])
def test_short_files_are_no_files(size: int) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        parse(build(SQUARE, b"")[:size])


def test_a_huge_file_is_refused_unread() -> None:
    data = bytes(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=str(MAX_FILE_BYTES)):
        parse(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": ()},
        {"sizes": ((64, 64),) * 65_537},
        {"sizes": ((0, 4),)},
        {"sizes": ((65_537, 1),)},
        {"sizes": ((2**14, 2**13),)},
        {"sizes": ((2**13, 2**13),) * 5},
        {"names": ("x",), "sizes": ((4, 4), (4, 4))},
        {"names": ("x", "x"), "sizes": ((4, 4), (4, 4))},
        {"names": ("ü" * 128,)},
        {"names": ("a\\b",)},
        {"names": ("\ud800",)},
    ],
)
def test_the_writer_keeps_the_limits(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(dataclasses.replace(SQUARE, **changes), b"")  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(
    "code", [0, 0x1F, 0x7F, 0x80, 0x9F, 0x2028, 0x2029, 0x61C, 0x200E, 0x202E, 0x2066, 0x2069]
)
def test_controls_are_in_no_name(code: int) -> None:
    name = f"a{chr(code)}b"
    with pytest.raises(ConfigError, match="no plain file name"):
        build(dataclasses.replace(SQUARE, names=(name,)), b"")
    encoded = name.encode()
    body = b"\x9dQ\x13" + TAG + b"\x01\x01\x40\x40" + bytes([len(encoded)]) + encoded
    with pytest.raises(IntegrityError, match="no plain file name"):
        parse(sealed(body))


def test_the_names_that_are_refused_are_those_of_the_document() -> None:
    ranges = [(0, 0x1F), (0x7F, 0x9F), (0x2028, 0x202E), (0x61C, 0x61C), (0x200E, 0x200F)]
    ranges += [(0x2066, 0x2069)]
    listed = {chr(c) for first, last in ranges for c in range(first, last + 1)}
    assert listed | set('/\\:*?"<>|') == NOT_IN_NAMES
    for code in (0xA0, 0xAD, 0x200B, 0x200D, 0xFEFF, 0xE000, 0x378, 0x1F600):
        header = dataclasses.replace(SQUARE, names=(f"a{chr(code)}b",))
        assert parse(build(header, b"")) == (header, b""), "whatever some table calls printable"


def test_a_pack_has_the_bytes_of_the_document() -> None:
    assert len(build(dataclasses.replace(PACK, sizes=((64, 64),) * 127), b"")) == 14
    assert len(build(dataclasses.replace(NEURAL, sizes=((64, 64),) * 127), b"")) == 19


def test_the_writer_keeps_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 100)
    build(SQUARE, bytes(89))
    with pytest.raises(ConfigError, match="101 bytes"):
        build(SQUARE, bytes(90))


def test_random_bodies_never_break_the_parser() -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        tag = 16 + rng.integers(16)
        body = b"\x9dQ" + bytes([tag]) + rng.bytes(int(rng.integers(4, 30)))
        try:
            header, payload = parse(sealed(body))
        except IntegrityError:
            continue
        accepted += 1
        assert build(header, payload) == sealed(body)
    assert accepted > 100
