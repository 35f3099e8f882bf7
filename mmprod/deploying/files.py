"""Rendered files before they are written: names with text, or with a file of the bundle to copy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmprod.errors import ConfigError
from mmprod.manifest import safe_join, write_text


@dataclass(frozen=True)
class Copy:
    """A file of the bundle, by its path there, that goes in as it is."""

    path: str


Files = dict[str, str | Copy]
"""POSIX paths below the output folder, and what stands there."""

MARK = ".mmprod-deploy"
"""Lies in a folder that `render` wrote and lists what: such a one may be written again."""


def check_target(folder: Path, bundle: Path) -> None:
    """Raise ConfigError when `folder` cannot take rendered files."""
    if folder.absolute().resolve().is_relative_to(bundle.absolute().resolve()):
        raise ConfigError(
            f"out-in-bundle: {folder} lies in the bundle, which vouches for all its files",
            hint="give a folder outside of it: --out deploy",
        )
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder} exists and is no folder", hint="give another folder")
    if any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ConfigError(
            f"{folder} holds other things than rendered files", hint="give a new folder"
        )


def write_files(files: Mapping[str, str | Copy], folder: Path, bundle: Path) -> None:
    """Write all of them into a folder beside `folder`, then move it there: all of it or nothing.

    What an earlier call rendered there is replaced; what others put there (a key) stays. Raises
    ConfigError where such a file has the name of one that is to be written.
    """
    target = folder.absolute()
    kept = _of_others(target)
    if taken := sorted(set(kept) & files.keys()):
        raise ConfigError(
            f"{folder / taken[0]} was not written by render and would be lost",
            hint="move it away, or give a new folder",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        new = beside / "new"
        for name, content in {**files, MARK: "".join(f"{n}\n" for n in sorted(files))}.items():
            place = safe_join(new, name)
            if isinstance(content, Copy):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / content.path, place)
            else:
                write_text(place, content)
        for name in kept:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target / name, new / name, follow_symlinks=False)
        if target.exists():
            target.rename(beside / "old")
        new.rename(target)
    finally:
        if (beside / "old").exists() and not target.exists():
            (beside / "old").rename(target)
        shutil.rmtree(beside)


def _of_others(folder: Path) -> list[str]:
    """Files in a rendered folder that `render` did not write."""
    mark = folder / MARK
    if not mark.is_file():
        return []
    ours = {MARK, *mark.read_text(encoding="utf-8").splitlines()}
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted({path.relative_to(folder).as_posix() for path in found} - ours)
