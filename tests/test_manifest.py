"""Files are whole or absent, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmprod.manifest import atomic_path, write_text


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    target = tmp_path / "new" / "file.txt"
    flushed = []

    def note(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        flushed.append((path, target.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_text(target, "text")
    (content, before), (folder, after) = flushed
    assert (content.parent, before) == (target.parent, False)
    assert (folder, after) == (target.parent, True)
    assert target.read_text() == "text"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_never_replaces_one(tmp_path):
    target = tmp_path / "file.txt"
    with atomic_path(target, new=True) as temporary:
        temporary.write_text("mine")
    with pytest.raises(FileExistsError), atomic_path(target, new=True) as temporary:
        temporary.write_text("second")
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
