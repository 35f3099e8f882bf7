"""Which picture files a command reads and writes, and what they are called inside a pack."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.paths import check_file_target, check_folder_target
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.bitstream import Description

SUFFIX = ".png"
LONGEST_NAME = 200
"""bytes of a picture's name in a pack: with a suffix it must fit any file system"""
NOT_IN_NAMES = frozenset('/\\:*?"<>|')


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """The pictures named and those that lie in the folders named, sorted by name in each.

    Raises ConfigError for what does not exist and for folders without pictures.
    """
    from mmprod.data.pictures import SUFFIXES

    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            if not path.is_file():
                raise ConfigError(f"{path} does not exist", hint="give pictures or folders of them")
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            kinds = " ".join(sorted(SUFFIXES))
            raise ConfigError(f"{path} holds no pictures", hint=f"files that end in {kinds}")
        found += inside
    return found


def pack_names(paths: Sequence[Path]) -> list[str]:
    """A plain name of its own for each picture, without its suffix where that is enough."""
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = _plain(path.stem)
        others = (f"{stem}-{number}" for number in itertools.count(2))
        candidates = itertools.chain((stem, _plain(path.name)), others)
        names.append(next(name for name in candidates if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def check_new_file(path: Path, replace: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise an error, before any work, when the file may or can not be written."""
    check_file_target(path)
    if not path.exists():
        return
    if any(path.samefile(other) for other in inputs):
        raise ConfigError(f"{path} is one of the inputs", hint="write to another file")
    if not replace:
        raise ConfigError(f"{path} exists", hint="give another file, or --replace")


def plan_places(about: Description, file: Path, target: Path, replace: bool) -> list[Path]:
    """The PNG file of each picture: `target` itself for one, NAME.png in that folder for a pack.

    Pictures of a pack without names are numbered. Raises ConfigError when something is in the way.
    """
    single = len(about.sizes) == 1 and target.suffix.lower() == SUFFIX and not target.is_dir()
    if single:
        check_new_file(target, replace, [file])
        return [target]
    if target.suffix and not target.is_dir():
        many = target.suffix.lower() == SUFFIX
        hint = f"a folder: {target.with_suffix('')}" if many else f"a folder, or {SUFFIX}"
        what = f"{len(about.sizes)} pictures" if many else "the picture"
        raise ConfigError(f"{target} cannot hold {what}", hint=f"give {hint}")
    check_folder_target(target)
    digits = len(str(len(about.sizes)))
    numbers = (f"{file.stem}-{number:0{digits}}" for number in itertools.count(1))
    unnamed = [file.stem] if len(about.sizes) == 1 else itertools.islice(numbers, len(about.sizes))
    places = [target / f"{name}{SUFFIX}" for name in about.names or unnamed]
    for place in places:
        check_new_file(place, replace, [file])
    return places


def _plain(name: str) -> str:
    """A file name that a pack may carry."""
    kept = "".join("_" if c in NOT_IN_NAMES or not c.isprintable() else c for c in name)
    short = kept.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore").strip(" .")
    return short or "picture"
