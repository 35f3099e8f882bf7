"""A bundle as one file: a plain tar that comes out the same byte for byte, and its safe reading.

An archive is only a way to travel. It is read member by member, in order, without links, folders,
devices, sparse files or compression, under names that are plain on every file system, into a new
folder; then the bundle is opened as any other, and only a whole one is moved to its place.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mmprod.bundle.artefact import is_plain
from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import HINT as BUNDLE_HINT
from mmprod.bundle.files import OWN
from mmprod.bundle.open import open_bundle
from mmprod.bundle.place import Place
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import atomic_path

MOST_FILES = 10_000
MOST_BYTES = 256 * 2**30
CHUNK = 2**20
HINT = "take the archive again from where it was made: mmprod bundle pack BUNDLE OUT.tar"


def pack(bundle: Bundle, out: Path) -> Path:
    """Write the bundle, checked, as a tar file. The same bundle gives the same bytes. Raises
    ConfigError when `out` exists; IntegrityError, and EnvironmentMissing while somebody writes to
    the bundle.
    """
    if out.exists():
        raise ConfigError(f"{out} exists", hint="give another name")
    if out.resolve().is_relative_to(bundle.root.resolve()):
        raise ConfigError(f"{out} lies inside the bundle", hint="give a place outside")
    try:
        with (
            bundle.writing(),
            atomic_path(out, new=True) as temporary,
            tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive,
        ):
            bundle.verify()
            own = [name for name in sorted(OWN) if (bundle.root / name).exists()]
            for name in own + [artefact.path for artefact in bundle.artefacts()]:
                _add(archive, bundle.root / name, name)
    except FileExistsError as error:
        raise ConfigError(f"{out} exists", hint="give another name") from error
    return out


def unpack(archive: Path, out: Path, *, most_bytes: int = MOST_BYTES) -> Bundle:
    """Read an archive into the new folder `out` and open it: exactly the bundle that was packed.
    Raises IntegrityError for anything else, ConfigError when `out` holds anything.
    """
    if not archive.is_file():
        raise ConfigError(f"{archive}: no such file", hint="mmprod bundle pack writes one")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} exists and is not empty", hint="give another folder")
    with Place(out).staged() as folder:
        _extract(archive, folder, most_bytes)
        try:
            open_bundle(folder)
        except IntegrityError as error:  # of a folder that nobody has seen, and that goes now
            text = error.message.replace(f"{folder}/", "").replace(str(folder), "the bundle in it")
            hint = HINT if error.hint == BUNDLE_HINT else error.hint
            raise IntegrityError(f"{archive}: {text}", hint=hint) from error
    return open_bundle(out, verify=False)  # as it was checked before it was moved


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    about = tarfile.TarInfo(name)
    with path.open("rb") as stream:
        about.size = os.fstat(stream.fileno()).st_size
        archive.addfile(about, stream)


def _extract(archive: Path, folder: Path, most_bytes: int) -> None:
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(archive, "r:") as opened:  # uncompressed only: nothing can swell
            for member in _members(opened):
                total += _check(archive, member, seen)
                if total > most_bytes or len(seen) > MOST_FILES:
                    raise IntegrityError(
                        f"{archive} holds more than {most_bytes} bytes or {MOST_FILES} files",
                        hint=HINT,
                    )
                _write(opened, member, folder / member.name)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise IntegrityError(f"{archive} is not a tar file: {error}", hint=HINT) from error


def _members(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := opened.next()) is not None:
        yield member


def _check(archive: Path, member: tarfile.TarInfo, seen: set[str]) -> int:
    """The member's bytes, if it may be written. Raises IntegrityError."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise IntegrityError(f"{archive}: {member.name!r} is no plain file", hint=HINT)
    if member.name not in OWN and not is_plain(member.name):
        raise IntegrityError(f"{archive}: not a plain relative path: {member.name!r}", hint=HINT)
    if member.name.casefold() in seen:
        raise IntegrityError(f"{archive}: {member.name!r} is there twice", hint=HINT)
    if member.size < 0:
        raise IntegrityError(f"{archive}: {member.name!r} has no size", hint=HINT)
    seen.add(member.name.casefold())
    return member.size


def _write(opened: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = opened.extractfile(member)
    if source is None:
        raise IntegrityError(f"{member.name!r} is no plain file", hint=HINT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    except (FileExistsError, NotADirectoryError) as error:
        raise IntegrityError(f"{member.name!r} is a file and a folder", hint=HINT) from error
    if path.stat().st_size != member.size:
        raise IntegrityError(f"{member.name!r} is cut off", hint=HINT)
