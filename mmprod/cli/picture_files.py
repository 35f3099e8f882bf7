"""Which picture files a command reads and writes, and what they are called inside a pack."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.paths import check_file_target, check_folder_target
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.bitstream import Description

SUFFIX = ".png"
LONGEST_NAME = 200
"""bytes of a picture's name in a pack: with a suffix it must fit any file system"""


@dataclass(frozen=True)
class Found:
    """Pictures, and what was seen in their folders and left out."""

    paths: list[Path]
    skipped: list[Path]


def find_pictures(given: Sequence[Path]) -> Found:
    """The pictures named and those that lie in the folders named, sorted by name in each.

    Raises ConfigError for what does not exist, for folders without pictures, and for more pictures
    than a file may hold.
    """
    from mmprod.bitstream.container import check_total
    from mmprod.data.pictures import SUFFIXES

    found: list[Path] = []
    skipped: list[Path] = []
    for path in given:
        if not path.is_dir():
            if not path.is_file():
                what = "is no regular file" if path.exists() else "does not exist"
                raise ConfigError(f"{path} {what}", hint="give pictures or folders of them")
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        taken = {*inside}
        skipped += sorted(p for p in path.iterdir() if p not in taken and p.name[0] != ".")
        if not inside:
            kinds = " ".join(sorted(SUFFIXES))
            raise ConfigError(f"{path} holds no pictures", hint=f"files that end in {kinds}")
        found += inside
    check_total(len(found), 0)
    return Found(found, skipped)


def pack_names(paths: Sequence[Path]) -> list[str]:
    """A plain name of its own for each picture, without its suffix where that is enough."""
    taken: set[str] = set()
    return [_distinct((_plain(path.stem), _plain(path.name)), taken) for path in paths]


def file_names(names: Sequence[str]) -> list[str]:
    """The names of a pack as names of files without suffix: those too long for a file system are
    cut, and differ from all others.
    """
    taken = {name.casefold() for name in names if len(name.encode()) <= LONGEST_NAME}
    return [
        name if len(name.encode()) <= LONGEST_NAME else _distinct((_plain(name),), taken)
        for name in names
    ]


@dataclass(frozen=True)
class Outside:
    """Where a command may write: not over what it reads (`inputs`), not into the run or bundle that
    it uses (`source`), and over other files only if `replace`.
    """

    source: Path
    inputs: Sequence[Path]
    replace: bool

    def check_place(self, path: Path) -> None:
        """Raises ConfigError for a place inside the source, before any folder is made there."""
        try:
            inside = path.resolve().is_relative_to(self.source.resolve())
        except RuntimeError as error:  # before Python 3.13; later it is seen as a link
            raise ConfigError(f"{path} is a circle of links", hint="name a real file") from error
        if inside:
            raise ConfigError(
                f"{path} lies inside {self.source}, whose files are fixed", hint="write elsewhere"
            )

    def check_file(self, path: Path) -> None:
        """Raises an error, before any work, when the file may or can not be written.

        Links are refused rather than followed: a link that is replaced by a file, and a file that
        is overwritten through a link, both are surprises.
        """
        self.check_place(path)
        if path.is_symlink():
            raise ConfigError(f"{path} is a link", hint="name the file itself, or remove the link")
        check_file_target(path)
        if not path.exists():
            return
        if not path.is_file():
            raise ConfigError(f"{path} is a device or pipe, no file", hint="name a file")
        if any(path.samefile(other) for other in self.inputs):
            raise ConfigError(f"{path} is one of the inputs", hint="write to another file")
        if not self.replace:
            raise ConfigError(f"{path} exists", hint="give another file, or --replace")


def plan_places(about: Description, file: Path, target: Path, outside: Outside) -> list[Path]:
    """The PNG file of each picture: `target` itself for one, NAME.png in that folder for a pack.

    Pictures of a pack without names are numbered. Raises ConfigError when something is in the way.
    """
    single = len(about.sizes) == 1 and target.suffix.lower() == SUFFIX and not target.is_dir()
    if single:
        outside.check_file(target)
        return [target]
    if target.suffix and not target.is_dir():
        many = target.suffix.lower() == SUFFIX
        hint = f"a folder: {target.with_suffix('')}" if many else f"a folder, or {SUFFIX}"
        what = f"{len(about.sizes)} pictures" if many else "the picture"
        raise ConfigError(f"{target} cannot hold {what}", hint=f"give {hint}")
    outside.check_place(target)
    check_folder_target(target)
    digits = len(str(len(about.sizes)))
    numbers = (f"{file.stem}-{number:0{digits}}" for number in itertools.count(1))
    unnamed = [file.stem] if len(about.sizes) == 1 else itertools.islice(numbers, len(about.sizes))
    places = [target / f"{name}{SUFFIX}" for name in file_names(about.names) or unnamed]
    for place in places:
        outside.check_file(place)
    return places


def _distinct(wanted: tuple[str, ...], taken: set[str]) -> str:
    """The first of the names, or of the first with a number, that is not taken; now it is."""
    others = (f"{wanted[0]}-{number}" for number in itertools.count(2))
    free = (n for n in itertools.chain(wanted, others) if n.casefold() not in taken)
    name = next(free)
    taken.add(name.casefold())
    return name


def _plain(name: str) -> str:
    """A file name that a pack may carry."""
    from mmprod.bitstream.names import NOT_IN_NAMES

    kept = "".join("_" if c in NOT_IN_NAMES else c for c in name)
    short = kept.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore").strip(" .")
    return short or "picture"
