"""Damaged and forged files through `mmprod decompress`: an exit code, and nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.bitstream.crc import crc32c

from .conftest import Mmprod
from .drawn import write

DAMAGED, OTHER_MACHINE = 4, 3


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A file of each prior, and a pack."""
    from mmprod.bitstream.compressor import Compressor
    from mmprod.cli.source import open_source

    from .drawn import pixels

    folder = tmp_path_factory.mktemp("pictures")
    many = [("one", pixels(write(folder / "a.png", 16, 20)))] * 2
    many[1] = ("two", many[1][1])
    source = open_source(run, None)
    with Compressor(source.dims, source.codec_facts(), source.runner) as compressor:
        single = [("", many[0][1])]
        made = [compressor.compress(single, prior).data for prior in ("raw", "static", "fusion")]
        return [*made, compressor.compress(many, "static").data]


def sealed(body: bytes) -> bytes:
    return body + crc32c(body).to_bytes(4, "big")


def test_three_dozen_damaged_files(
    files: list[bytes], mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    path, back = tmp_path / "x.mm", tmp_path / "back"
    for index in range(36):
        data = bytearray(files[index % 4])
        at = int(rng.integers(2, len(data)))
        match index // 4 % 3:
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.bytes(3)
        path.write_bytes(bytes(data))
        result = mmprod("decompress", run, path, "--out", back)
        assert result.code == DAMAGED, (index, result.err)
        assert result.err.startswith("error: ") and "hint: " in result.err
        assert not back.exists() or not list(back.iterdir())


def test_forged_files_say_what_they_are(
    files: list[bytes], mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    """The checksum is right: the payload gives itself away, a fingerprint is another machine's."""
    raw, static, fusion, _ = (bytearray(data[:-4]) for data in files)
    for body, at, by, code in (
        (raw, len(raw), b"\0", DAMAGED),
        (static, 6, b"\xff\xff\x03", DAMAGED),
        (static, len(static), b"\0\0", DAMAGED),
        (fusion, 8, b"\x01\x02\x03", DAMAGED),
        (fusion, 6, bytes([fusion[6], fusion[7] ^ 1]), OTHER_MACHINE),
        (fusion, 6, bytes([fusion[6] ^ 0x60, fusion[7]]), OTHER_MACHINE),
    ):
        changed = bytearray(body)
        changed[at : at + len(by)] = by
        (tmp_path / "x.mm").write_bytes(sealed(bytes(changed)))
        result = mmprod("decompress", run, tmp_path / "x.mm", "--out", tmp_path / "back.png")
        assert result.code == code, (at, by, result.err)
        assert not (tmp_path / "back.png").exists()
