"""What a writer does to a bundle it does wholly or not at all: a full disk or Ctrl-C between two of
its files would leave hashes that fit no longer, and a bundle that nobody opens.

A killed process undoes nothing.
"""

from __future__ import annotations

import contextlib
import filecmp
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmprod.bundle.files import OWN
from mmprod.manifest import atomic_path


@contextlib.contextmanager
def put_back_on_failure(root: Path, names: Iterable[str]) -> Iterator[None]:
    """If the block raises, the files of these names and the bundle's own are as they were, and new
    files are gone. For use within `Bundle.writing`; a handle that was used is to be opened anew.
    """
    before = _files(root)
    there = [name for name in sorted({*names, *OWN}) if root / name in before]
    with tempfile.TemporaryDirectory(prefix="mmprod-before-") as folder:
        kept = Path(folder)
        for name in there:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, kept / name)
        try:
            yield
        except BaseException:
            for path in _files(root) - before:
                path.unlink()
            _put_back(root, kept, there)
            raise


def _files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def _put_back(root: Path, kept: Path, names: Iterable[str]) -> None:
    """The changed ones go first: on a full disk that makes the room."""
    changed = [
        name
        for name in names
        if not (root / name).is_file() or not filecmp.cmp(root / name, kept / name, shallow=False)
    ]
    for name in changed:
        (root / name).unlink(missing_ok=True)
    for name in changed:
        with atomic_path(root / name) as temporary:
            shutil.copyfile(kept / name, temporary)
