"""Bundles as tar files: what is packed is unpacked, and nothing else is."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.archive import pack, unpack
from mmprod.bundle.keys import generate
from mmprod.errors import ConfigError, IntegrityError

Member = tuple[tarfile.TarInfo, bytes]


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def write(path: Path, content: list[Member], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, data in content:
            archive.addfile(member, io.BytesIO(data))


def named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.fixture
def packed(signed: Bundle, tmp_path: Path) -> Path:
    return pack(signed, tmp_path / "b.tar")


def test_round_trip_is_exact_and_reproducible(
    signed: Bundle, packed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    opened = unpack(packed, tmp_path / "out")
    assert opened.artefacts() == signed.artefacts()
    assert open_bundle(opened.root, trusted=[keys[1]]).signed
    assert pack(opened, tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        pack(signed, packed)
    with pytest.raises(ConfigError, match="inside"):
        pack(signed, signed.root / "x.tar")
    with pytest.raises(ConfigError, match="not empty"):
        unpack(packed, tmp_path / "out")


def test_a_bundle_that_somebody_changed_meanwhile_is_not_packed(
    signed: Bundle, tmp_path: Path
) -> None:
    other = open_bundle(signed.root)
    other.save()
    with pytest.raises(IntegrityError, match="another process"):
        pack(signed, tmp_path / "b.tar")
    (signed.root / "tokenizer.json").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="tokenizer"):
        pack(other, tmp_path / "b.tar")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


TRICKS = {
    "absolute": named("/tmp/mmprod-test-owned"),
    "up": named("../owned"),
    "up inside": named("onnx/../../owned"),
    "link": named("x", tarfile.SYMTYPE, "/etc/hostname"),
    "link to folder": named("engines", tarfile.SYMTYPE, "/tmp"),
    "hard link": named("x", tarfile.LNKTYPE, "../../owned"),
    "folder": named("folder", tarfile.DIRTYPE),
    "pipe": named("x", tarfile.FIFOTYPE),
    "device": named("x", tarfile.CHRTYPE),
    "stranger": named("extra.onnx"),
    "twice": named("tokenizer.json"),
    "case": named("TOKENIZER.json"),
    "file and folder": named("tokenizer.json/x"),
    "hidden": named(".ssh"),
    "backslash": named("onnx\\x"),
    "unicode": named("tok\u200benizer.json"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused_and_leave_nothing(
    trick: str, first: bool, packed: Path, tmp_path: Path
) -> None:
    content = members(packed)
    content.insert(0 if first else len(content), TRICKS[trick])
    write(tmp_path / "bad.tar", content)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(IntegrityError):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not Path("/tmp/mmprod-test-owned").exists()


def test_swollen_archives_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="more than 100 bytes"):
        unpack(packed, tmp_path / "out", most_bytes=100)
    write(tmp_path / "b.tar.gz", members(packed), "w:gz")
    with pytest.raises(IntegrityError, match="not a tar"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out")
    with pytest.raises(ConfigError, match="no such file"):
        unpack(tmp_path / "absent.tar", tmp_path / "out")


def test_damaged_archives_are_refused(packed: Path, tmp_path: Path) -> None:
    data, bad = packed.read_bytes(), tmp_path / "bad.tar"
    with tarfile.open(packed) as archive:
        contents = [(m.offset_data, m.offset_data + m.size) for m in archive]
    rng = random.Random(0)
    for number in range(40):
        changed = bytearray(data)
        if number % 2:
            place = rng.randrange(*rng.choice(contents))
            changed[place] ^= 1 << rng.randrange(8)
        else:
            del changed[rng.randrange(contents[-1][1]) :]
        bad.write_bytes(changed)
        with pytest.raises(IntegrityError):
            unpack(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refusal_speaks_of_the_archive_and_not_of_a_folder_that_is_gone(
    packed: Path, tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bad = packed.read_bytes(), tmp_path / "bad.tar"
    bad.write_bytes(data.replace(b"tokenizer.json\n", b"tokenizer.j$on\n", 1))
    with pytest.raises(IntegrityError) as caught:
        unpack(bad, tmp_path / "out")
    assert caught.value.message.startswith(f"{bad}: tokenizer.json was changed")
    assert "bundle pack" in caught.value.hint
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(generate(tmp_path / "other").path))
    with pytest.raises(IntegrityError, match="not among the trusted") as caught:
        unpack(packed, tmp_path / "out")
    assert caught.value.message.startswith(f"{packed}: bundle.sig")
    assert "other.pub" in caught.value.hint


def test_flipped_headers_are_refused_or_harmless(
    packed: Path, tmp_path: Path, signed: Bundle
) -> None:
    data, bad = packed.read_bytes(), tmp_path / "bad.tar"
    with tarfile.open(packed) as archive:
        headers = [m.offset for m in archive]
    rng = random.Random(1)
    for number in range(40):
        changed = bytearray(data)
        changed[rng.choice(headers) + rng.randrange(512)] ^= 1 << rng.randrange(8)
        bad.write_bytes(changed)
        try:
            opened = unpack(bad, tmp_path / f"out{number}")
        except IntegrityError:
            continue
        assert opened.artefacts() == signed.artefacts()
