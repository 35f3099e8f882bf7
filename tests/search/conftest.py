"""A folder of small pictures with captions, and an index of it by towers that need no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmprod.search import Table, create_table, is_table, open_table
from mmprod.search.entries import Left, Taken, folder_entries
from mmprod.search.update import Change, update, writing
from tools.search_toy import ABOUT, DIMS, toy_embedder, write_pictures

NAMES = tuple(f"{kind}/{number}.png" for kind in "ab" for number in range(6))
Bring = Callable[..., tuple[Table, Change]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", NAMES)
    return tmp_path / "pictures"


@pytest.fixture
def bring(folder: Path, tmp_path: Path) -> Bring:
    """`bring(strict=False)`: the index brought up to date with the folder."""

    def run(**options: bool) -> tuple[Table, Change]:
        place = str(tmp_path / "index")
        left: Left = []
        entries = folder_entries(folder, Taken(DIMS.image_size, ("en",)), left)
        table = open_table(place) if is_table(place) else create_table(place, ABOUT)
        with writing(place):
            change = update(table, toy_embedder(), entries, **options)
        change.left += left
        return table, change

    return run
