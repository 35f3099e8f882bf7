"""Where `mmprod compress` and `mmprod decompress` write, and what they leave alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmprod import manifest

from .conftest import Mmprod
from .drawn import write


@pytest.fixture
def packed(mmprod: Mmprod, run: Path, tmp_path: Path) -> Path:
    file = tmp_path / "packed.mm"
    assert mmprod("compress", run, write(tmp_path / "a.png"), "--out", file).code == 0
    return file


@pytest.mark.parametrize("flags", [(), ("--replace",)])
def test_only_regular_files_are_written(
    flags: tuple[str, ...], mmprod: Mmprod, run: Path, tmp_path: Path, packed: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"kept")
    (tmp_path / "link.png").symlink_to(kept)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    picture = tmp_path / "a.png"
    for name, words in (
        ("pipe", "device or pipe"),
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("circle", "link"),
    ):
        target = tmp_path / f"{name}.png"
        for arguments in (("compress", run, picture), ("decompress", run, packed)):
            result = mmprod(*arguments, "--out", target, *flags)
            assert result.code == 2 and words in result.err, result.err
    for arguments in (("compress", run, picture), ("decompress", run, packed)):
        assert mmprod(*arguments, "--out", "/dev/null", *flags).code == 2
    assert (tmp_path / "pipe.png").is_fifo() and kept.read_bytes() == b"kept"
    assert not (tmp_path / "nowhere.png").exists()


def test_nothing_is_written_into_the_run_that_is_used(
    mmprod: Mmprod, run: Path, tmp_path: Path, packed: Path
) -> None:
    before = sorted(run.rglob("*"))
    (tmp_path / "way").symlink_to(run)
    for folder in (run, run / "codec", run / "new", tmp_path / "way"):
        for arguments in (
            ("compress", run, tmp_path / "a.png", "--out", folder / "x.mm"),
            ("decompress", run, packed, "--out", folder / "x.png"),
            ("decompress", run, packed, "--out", folder / "pictures"),
            ("decompress", tmp_path / "way", packed, "--out", folder),
        ):
            result = mmprod(*arguments, "--replace")
            assert result.code == 2 and "lies inside" in result.err, result.err
    assert sorted(run.rglob("*")) == before


def test_a_file_that_appeared_meanwhile_is_not_overwritten(
    mmprod: Mmprod, run: Path, tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def somebody_else(handle: int) -> None:
        fsync(handle)
        for target in (tmp_path / "b.mm", tmp_path / "b.png"):
            target.write_bytes(b"theirs")

    picture = tmp_path / "a.png"
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "fsync", somebody_else)
        for arguments in (
            ("compress", run, picture, "--out", tmp_path / "b.mm"),
            ("decompress", run, packed, "--out", tmp_path / "b.png"),
        ):
            for target in (tmp_path / "b.mm", tmp_path / "b.png"):
                target.unlink(missing_ok=True)
            result = mmprod(*arguments)
            assert result.code == 2 and "exists" in result.err
            assert arguments[-1].read_bytes() == b"theirs"
    assert not list(tmp_path.glob(".unfinished*"))
    assert mmprod("compress", run, picture, "--out", tmp_path / "b.mm", "--replace").code == 0


def test_a_run_has_no_other_precision(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.mm"
    result = mmprod(
        "compress", run, write(tmp_path / "a.png"), "--out", target, "--precision", "fp16"
    )
    assert result.code == 2
    assert "fp32, not in fp16" in result.err
    assert not target.exists()
