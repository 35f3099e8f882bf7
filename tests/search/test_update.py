"""An index follows its folder: what is new, changed, broken or gone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprod.bundle import lock
from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.search import update as updating
from mmprod.search.entries import Left, Taken, folder_entries
from mmprod.search.update import prune, update, writing
from mmprod.search.verify import verify
from tools.search_toy import DIMS, toy_embedder, write_pictures

from .conftest import NAMES, Bring


def test_only_what_is_new_or_changed_is_embedded(bring: Bring, folder: Path) -> None:
    table, first = bring()
    assert (first.added, first.captions, first.same) == (12, 12, 0)
    before = table.digests()
    _, again = bring()
    assert (again.added, again.replaced, again.same) == (0, 0, 12)
    write_pictures(folder, ["a/0.png", "c/new.png"], seed=5)
    (folder / "b/1.txt").write_text("mostly red\nalso a caption\n")
    _, third = bring()
    assert (third.added, third.replaced, third.same, third.captions) == (1, 2, 10, 4)
    after = table.digests()
    changed = {name for name in after if after[name] != before.get(name)}
    assert {Path(name).relative_to(folder).as_posix() for name in changed} == {
        "a/0.png", "b/1.png", "c/new.png",
    }  # fmt: skip
    assert verify(table) == {"pictures": 13, "captions": 14}


def test_a_caption_that_was_taken_back_is_no_longer_found(bring: Bring, folder: Path) -> None:
    bring()
    (folder / "a/0.txt").unlink()
    table, _ = bring()
    assert verify(table) == {"pictures": 12, "captions": 11}


def test_broken_pictures_are_named_and_the_rest_is_indexed(bring: Bring, folder: Path) -> None:
    bring()
    (folder / "a/1.png").write_bytes(b"no picture")
    (folder / "new.png").write_bytes((folder / "a/2.png").read_bytes()[:60])
    table, change = bring()
    assert {Path(entry["file"]).name for entry in change.left} == {"1.png", "new.png"}
    assert all(entry["reason"] for entry in change.left)
    assert change.gone == 1, "what a.png was is no longer true"
    assert verify(table) == {"pictures": 11, "captions": 11}


def test_strict_stops_at_a_broken_picture_and_keeps_what_was_indexed(
    bring: Bring, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updating, "STEP", 4)
    (folder / "b/5.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"b/5\.png is of no use"):
        bring(strict=True)
    (folder / "b/5.png").unlink()
    table, change = bring()
    assert (change.same, change.added) == (8, 3)
    assert verify(table)["pictures"] == 11


def test_pruning_forgets_what_is_gone_from_this_folder_only(
    bring: Bring, folder: Path, tmp_path: Path
) -> None:
    table, _ = bring()
    taken = Taken(DIMS.image_size, ("en",))
    write_pictures(tmp_path / "pictures2", ["x.png"])
    other = folder_entries(tmp_path / "pictures2", taken, [])
    update(table, toy_embedder(), other)
    (folder / "a/3.png").unlink()
    assert prune(table, folder, folder_entries(folder, taken, []), []) == 1
    assert len(table.digests()) == len(NAMES)
    assert other[0].name in table.digests()


def test_one_writer_at_a_time(bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = bring()
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    hold = (
        "import sys, time; from pathlib import Path; from mmprod.bundle.lock import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, table.place], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with (
                pytest.raises(EnvironmentMissing, match="another process") as caught,
                writing(table.place),
            ):
                pass
            assert "an index" in caught.value.hint
            assert len(table.digests()) == len(NAMES), "readers do not wait"
        finally:
            other.kill()


def refuse(number: int) -> Callable[..., str]:
    def raise_it(*given: object, **named: object) -> str:
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_now_stays_as_it_was(
    number: int, bring: Bring, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = bring()
    monkeypatch.setattr("mmprod.search.entries.sha256_file", refuse(number))
    _, change = bring()
    assert {entry["reason"] for entry in change.left} == {os.strerror(number)}
    assert (len(change.left), change.gone) == (12, 0)
    assert verify(table) == {"pictures": 12, "captions": 12}


def test_a_passing_error_while_decoding_is_none_of_the_picture(
    bring: Bring, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = bring()
    write_pictures(folder, ["a/0.png"], seed=9)
    monkeypatch.setattr("PIL.Image.open", refuse(errno.EIO))
    _, change = bring()
    assert (len(change.left), change.gone) == (1, 0)
    assert len(table.digests()) == 12


def test_a_folder_that_cannot_be_read_is_told_and_not_pruned(
    bring: Bring, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network folder does that is away for a moment; root reads whatever has no permission."""
    table, _ = bring()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    left: Left = []
    entries = folder_entries(folder, Taken(DIMS.image_size, ("en",)), left)
    assert len(entries) == 6
    assert left == [{"file": str(folder / "a"), "reason": "cannot be read: Permission denied"}]
    (folder / "b/0.png").unlink()
    assert prune(table, folder, entries[1:], left) == 1
    assert len(table.digests()) == 11
    monkeypatch.undo()
    (folder / "a/0.png").unlink()
    rest = folder_entries(folder, Taken(DIMS.image_size, ("en",)), [])
    assert prune(table, folder, rest, []) == 1
