"""The container: bytes <-> header and payload. Strict: what it accepts has one form only.

    one picture   magic(2) tag(1) codec(3) [runtime(2) check(3)] height [width] payload crc(4)
    pack          magic(2) tag(1) codec(3) [runtime(2) check(3)] flags(1) count sizes [names]
                  payload crc(4)

Brackets: only with the fusion prior, only when sizes differ, only when there are names. Numbers are
varints. The whole grammar with every bit is in docs/bitstream.md. Cropping is implied: a picture
of H x W pixels has ceil(H / f) x ceil(W / f) cells, and what the codec gives beyond H and W is cut.

All limits are checked before anything is made for what a file claims to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprod.bitstream.crc import crc32c
from mmprod.bitstream.names import check_name
from mmprod.bitstream.picture import TAG_BYTES
from mmprod.bitstream.priors import PriorName
from mmprod.bitstream.runtime import FINGERPRINT_BYTES, family_name
from mmprod.errors import ConfigError, IntegrityError

FORMAT = 1
MAGIC = b"\x9dQ"
CHECK_BYTES = 3
"""of the CRC-32C of the codes, with the fusion prior"""
MAX_FILE_BYTES = 2**26
MAX_SIDE = 2**16
MAX_PIXELS = 2**26
"""of one picture"""
MAX_FILE_PIXELS = 2**28
MAX_PICTURES = 2**16

_PRIORS: tuple[PriorName, ...] = ("raw", "static", "fusion")
_CRC_BYTES = 4
_SHORTEST = len(MAGIC) + 1 + TAG_BYTES + 1 + _CRC_BYTES
_PACK, _EVEN = 2, 1
_NAMED = 1
_GOOD_COPY = "take the file from a good copy"

Size = tuple[int, int]


@dataclass(frozen=True)
class Header:
    """All of a file but its payload. names: one per picture, or none at all. runtime and check are
    empty unless the prior is `fusion`.
    """

    prior: PriorName
    codec: bytes
    sizes: tuple[Size, ...]
    names: tuple[str, ...] = ()
    runtime: bytes = b""
    check: bytes = b""


@dataclass(frozen=True)
class Description:
    """What a file says of itself, without a codec. `runtime`: the program that wrote it, with the
    fusion prior; `codec`: first three bytes of its hash in hex; sizes: (height, width).
    """

    format: int
    prior: PriorName
    codec: str
    sizes: tuple[Size, ...]
    names: tuple[str, ...]
    runtime: str
    file_bytes: int
    payload_bytes: int

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole file."""
        return 8 * self.file_bytes / sum(height * width for height, width in self.sizes)


def describe(data: bytes) -> Description:
    """The header of a file whose checksum is right. Raises IntegrityError."""
    header, payload = parse(data)
    return Description(
        format=FORMAT,
        prior=header.prior,
        codec=header.codec.hex(),
        sizes=header.sizes,
        names=header.names,
        runtime=family_name(header.runtime) if header.runtime else "any",
        file_bytes=len(data),
        payload_bytes=len(payload),
    )


def build(header: Header, payload: bytes) -> bytes:
    """The file. Raises ConfigError when the header leaves the limits of the format."""
    _check_limits(header.sizes, header.names)
    pack = len(header.sizes) > 1 or bool(header.names)
    first = header.sizes[0]
    even = all(size == first for size in header.sizes) if pack else first[0] == first[1]
    tag = FORMAT << 4 | _PRIORS.index(header.prior) << 2 | _PACK * pack | _EVEN * even
    out = bytearray(MAGIC + bytes([tag]) + header.codec + header.runtime + header.check)
    if pack:
        out.append(_NAMED * bool(header.names))
        out += _varint(len(header.sizes))
    for size in header.sizes[:1] if even else header.sizes:
        out += _varint(size[0])
        if pack or not even:
            out += _varint(size[1])
    for name in header.names:
        encoded = name.encode("utf-8")
        out += bytes([len(encoded)]) + encoded
    out += payload
    data = bytes(out) + crc32c(bytes(out)).to_bytes(_CRC_BYTES, "big")
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            f"the file would have {len(data)} bytes, {MAX_FILE_BYTES} at most",
            hint="put fewer pictures into a pack",
        )
    return data


def parse(data: bytes) -> tuple[Header, bytes]:
    """Header and payload. Raises IntegrityError saying what is wrong and where."""
    if len(data) < _SHORTEST or len(data) > MAX_FILE_BYTES:
        raise _damage(f"{len(data)} bytes, a file has {_SHORTEST} to {MAX_FILE_BYTES}")
    if not data.startswith(MAGIC):
        raise IntegrityError(
            f"not a picture file of mmprod: it starts with {data[:2].hex()}, not {MAGIC.hex()}",
            hint="mmprod compress writes such files",
        )
    tag = data[len(MAGIC)]
    if tag >> 4 != FORMAT:
        raise IntegrityError(
            f"format {tag >> 4}, this version reads format {FORMAT}",
            hint="a newer mmprod may read it, if it is not damaged",
        )
    body, crc = data[:-_CRC_BYTES], int.from_bytes(data[-_CRC_BYTES:], "big")
    if crc32c(body) != crc:
        raise _damage(f"checksum {crc32c(body):08x}, the file says {crc:08x}")
    if (tag >> 2 & 3) >= len(_PRIORS):
        raise IntegrityError(
            f"prior number {tag >> 2 & 3}, this version knows 0 to {len(_PRIORS) - 1}",
            hint="a newer mmprod may read it",
        )
    return _Parser(body, len(MAGIC) + 1).read(tag)


class _Parser:
    """Reads a body whose checksum is right, from the byte after the tag."""

    def __init__(self, body: bytes, place: int) -> None:
        self._body, self._place = body, place

    def read(self, tag: int) -> tuple[Header, bytes]:
        prior, pack, even = _PRIORS[tag >> 2 & 3], bool(tag & _PACK), bool(tag & _EVEN)
        codec = self._take(TAG_BYTES, "the codec")
        neural = prior == "fusion"
        runtime = self._take(FINGERPRINT_BYTES, "the fingerprint") if neural else b""
        check = self._take(CHECK_BYTES, "the check value") if neural else b""
        sizes, names = self._pack(even) if pack else (self._single(even), ())
        try:
            _check_limits(sizes, names)
        except ConfigError as error:
            raise _damage(error.message) from error
        header = Header(prior, codec, sizes, names, runtime, check)
        return header, self._body[self._place :]

    def _single(self, even: bool) -> tuple[Size, ...]:
        height = self._number("the height")
        width = height if even else self._number("the width")
        if not even and width == height:
            raise _damage("a square picture is not marked as one", self._place)
        return ((height, width),)

    def _pack(self, even: bool) -> tuple[tuple[Size, ...], tuple[str, ...]]:
        flags = self._take(1, "the flags")[0]
        if flags & ~_NAMED:
            raise _damage(f"unknown flags {flags:#x}", self._place - 1)
        count = self._number("the number of pictures")
        if count > MAX_PICTURES or count < 2 - (flags & _NAMED):
            raise _damage(f"a pack of {count} pictures", self._place)
        sizes = tuple(self._size() for _ in range(1 if even else count))
        if not even and len(set(sizes)) == 1:
            raise _damage("pictures of one size are not marked as such", self._place)
        names = tuple(self._name() for _ in range(count)) if flags & _NAMED else ()
        return sizes * count if even else sizes, names

    def _size(self) -> Size:
        return self._number("a height"), self._number("a width")

    def _name(self) -> str:
        length = self._take(1, "the length of a name")[0]
        raw = self._take(length, "a name")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damage("a name is not UTF-8", self._place - length) from error

    def _number(self, what: str) -> int:
        """A varint of at most three bytes, in its shortest form."""
        value = 0
        for shift in (0, 7, 14):
            byte = self._take(1, what)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if shift and not byte:
                    raise _damage(f"{what} is not written in its shortest form", self._place - 1)
                return value
        raise _damage(f"{what} is larger than any allowed", self._place - 1)

    def _take(self, count: int, what: str) -> bytes:
        part = self._body[self._place : self._place + count]
        if len(part) < count:
            raise _damage(f"the file ends inside {what}", self._place)
        self._place += count
        return part


def check_size(height: int, width: int) -> None:
    """Raises ConfigError for a picture of a size that no file may hold."""
    if min(height, width) < 1 or max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ConfigError(
            f"a picture of {height} x {width} pixels",
            hint=f"1 to {MAX_SIDE} pixels a side, {MAX_PIXELS:,} at most in all; cut or scale it",
        )


def check_total(pictures: int, pixels: int) -> None:
    """Raises ConfigError for more pictures, or pixels of all together, than a file may hold."""
    if pictures > MAX_PICTURES:
        raise ConfigError(f"{pictures} pictures in a file", hint=f"1 to {MAX_PICTURES}")
    if pixels > MAX_FILE_PIXELS:
        raise ConfigError(
            f"{pixels} pixels in a file, {MAX_FILE_PIXELS} at most",
            hint="put fewer pictures into a pack",
        )


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that another byte follows."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _check_limits(sizes: Sequence[Size], names: Sequence[str]) -> None:
    """Raises ConfigError for sizes and names that no file may have."""
    if not sizes:
        raise ConfigError("0 pictures in a file", hint=f"1 to {MAX_PICTURES}")
    for height, width in sizes:
        check_size(height, width)
    check_total(len(sizes), sum(height * width for height, width in sizes))
    for name in names:
        check_name(name)
    if names and (len(names) != len(sizes) or len(set(names)) != len(names)):
        raise ConfigError(
            f"{len(set(names))} different names for {len(sizes)} pictures",
            hint="name all pictures differently, or none",
        )


def _damage(what: str, place: int | None = None) -> IntegrityError:
    where = "" if place is None else f" (byte {place})"
    return IntegrityError(f"the file is damaged: {what}{where}", hint=_GOOD_COPY)
