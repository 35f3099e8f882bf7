"""Whole files: pictures -> bytes -> the same pictures, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmprod.bitstream.container import CHECK_BYTES, Header, build, parse
from mmprod.bitstream.crc import crc32c
from mmprod.bitstream.picture import CodecId, Codes, Picture
from mmprod.bitstream.priors import Prior, Shapes, check_count, count_codes
from mmprod.bitstream.runtime import check_runtime
from mmprod.errors import ConfigError, IntegrityError

MAX_FILE_CODES = 2**25
"""codes of all pictures of a file; 128 MiB as int32"""


@dataclass(frozen=True)
class Written:
    """A file, and the information content of its codes under the prior in bits: how long the
    payload would be with a perfect coder.
    """

    data: bytes
    code_bits: float


def write_file(pictures: Sequence[Picture], codec: CodecId, prior: Prior) -> Written:
    """One picture without a name: a single file; else a pack. All pictures have names or none has.

    Raises ConfigError for codes that are not of this codec and size, sizes or names beyond the
    limits of the format (see container.py).
    """
    shapes = [codec.shape(picture.height, picture.width) for picture in pictures]
    check_codes(count_codes(shapes))
    named = [picture.name for picture in pictures if picture.name]
    if named and len(named) != len(pictures):
        raise ConfigError(
            f"{len(named)} of {len(pictures)} pictures have names", hint="name all pictures or none"
        )
    parts = [_symbols(p, s, codec) for p, s in zip(pictures, shapes, strict=True)]
    symbols = np.concatenate(parts) if parts else np.empty(0, np.int32)
    runtime = prior.fingerprint(shapes)
    header = Header(
        prior.name,
        codec.tag,
        tuple((picture.height, picture.width) for picture in pictures),
        tuple(named),
        runtime,
        _check_value(symbols) if runtime else b"",
    )
    build(header, b"")  # before the prior works for nothing: the limits
    payload = prior.encode(symbols, shapes)
    return Written(build(header, payload.data), payload.bits)


def read_file(data: bytes, codec: CodecId, prior: Prior) -> list[Picture]:
    """The pictures of a file; exactly what was written, or an error.

    Raises IntegrityError when the file is damaged or of another codec, ConfigError when it was
    written with another kind of prior (`describe` says which), EnvironmentMissing when the fusion
    prior computes other bits here than where it was written.
    """
    header, payload = parse(data)
    if header.codec != codec.tag:
        raise IntegrityError(
            f"the file belongs to the codec {header.codec.hex()}, this one is {codec.tag.hex()}",
            hint="give the run or bundle that it was compressed with",
        )
    if header.prior != prior.name:
        raise ConfigError(
            f"the file was written with the prior {header.prior}, not {prior.name}",
            hint="describe(data).prior names the prior to open",
        )
    shapes = [codec.shape(height, width) for height, width in header.sizes]
    try:
        check_codes(count_codes(shapes))
    except ConfigError as error:
        raise IntegrityError(f"the file is damaged: {error.message}", hint=error.hint) from error
    if header.runtime:
        check_count(payload, shapes)
        check_runtime(header.runtime, prior.fingerprint(shapes), prior.runtime())
    symbols = prior.decode(payload, shapes)
    if header.check and header.check != _check_value(symbols):
        raise IntegrityError(
            "the codes that came out are not those that were written: the prior computes other "
            "numbers here, or the file was forged",
            hint="read it where it was written; files with --prior static can be read everywhere",
        )
    return list(_pictures(symbols, header, shapes, codec))


def _symbols(picture: Picture, shape: tuple[int, int, int], codec: CodecId) -> Codes:
    """The codes as ids of their plane. Raises ConfigError when they are not of this codec."""
    codes = picture.codes
    count = shape[0] * shape[1] * shape[2]
    if codes.shape != (count,) or codes.dtype.kind not in "iu":
        raise ConfigError(
            f"a picture of {picture.height} x {picture.width} pixels has {count} codes, "
            f"not {codes.dtype} {codes.shape}",
            hint="planes * rows * columns, whole numbers, in one row",
        )
    symbols = codes.astype(np.int64) - _offsets(shape, codec)
    if symbols.min() < 0 or symbols.max() >= codec.book:
        raise ConfigError(
            f"codes outside their planes of {codec.book} ids",
            hint="are these the codes of another codec?",
        )
    return symbols.astype(np.int32)


def _pictures(symbols: Codes, header: Header, shapes: Shapes, codec: CodecId) -> list[Picture]:
    names = header.names or ("",) * len(shapes)
    out, start = [], 0
    for (height, width), name, shape in zip(header.sizes, names, shapes, strict=True):
        count = count_codes([shape])
        codes = symbols[start : start + count] + _offsets(shape, codec)
        out.append(Picture(codes.astype(np.int32), height, width, name))
        start += count
    return out


def _offsets(shape: tuple[int, int, int], codec: CodecId) -> Codes:
    """First id of the plane of every code."""
    planes, rows, columns = shape
    return np.repeat(np.arange(planes, dtype=np.int32) * codec.book, rows * columns)


def _check_value(symbols: Codes) -> bytes:
    value = crc32c(symbols.astype("<i4").tobytes())
    return value.to_bytes(4, "big")[-CHECK_BYTES:]


def check_codes(count: int) -> None:
    """Raises ConfigError for more codes than a file may hold."""
    if count > MAX_FILE_CODES:
        raise ConfigError(
            f"{count} codes in a file, {MAX_FILE_CODES} at most",
            hint="put fewer or smaller pictures into it",
        )
