"""Files that can be trusted: hashes, atomic writes and the check of a folder against its manifest.

Every artefact (data set, checkpoint, run, bundle) lists its files with SHA-256 and size. Readers
call `verify_files` before they open anything; writers call `write_json` / `atomic_path`, so a file
is either whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmprod.errors import IntegrityError, as_os_error


@dataclass(frozen=True)
class FileEntry:
    """One file of an artefact: POSIX path relative to the artefact's root, SHA-256 in hex, size in
    bytes.
    """

    path: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, root: Path, path: Path) -> FileEntry:
        """Hash `path`, which lies below `root`."""
        return cls(path.relative_to(root).as_posix(), sha256_file(path), path.stat().st_size)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over
    `path`, and the rename is flushed too; else it is removed.

    `new`: nothing is overwritten. Raises FileExistsError at the end when something of that name
    has appeared meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        if new:
            path.touch(exist_ok=False)  # takes the name; works where there are no hard links too
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        refusal = as_os_error(error, path) if isinstance(error, Exception) else None
        if refusal is not None:
            raise refusal from error
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def flush_folder(folder: Path) -> None:
    """A rename is an entry of its folder: without this a power cut can undo it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, *, hint: str = "") -> Any:
    """Read a JSON file. Raises IntegrityError when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", hint=hint) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint=hint) from error


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative`, refusing absolute paths, `..`, and links that leave `root`. Raises
    IntegrityError.
    """
    pure = PurePosixPath(relative)
    joined = root / pure
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative:
        raise IntegrityError(f"{root}: manifest names a path outside the folder: {relative!r}")
    if not joined.resolve().is_relative_to(root.resolve()):
        raise IntegrityError(f"{root}: {relative!r} is a link that leaves the folder")
    return joined


def verify_files(root: Path, entries: Iterable[FileEntry], *, hint: str = "") -> None:
    """Check every entry's presence, size and SHA-256. Raises IntegrityError naming the first file
    that differs.
    """
    for entry in entries:
        path = safe_join(root, entry.path)
        if not path.is_file():
            raise IntegrityError(f"{path} is missing", hint=hint)
        size = path.stat().st_size
        if size != entry.bytes:
            raise IntegrityError(
                f"{path} has {size} bytes, its manifest says {entry.bytes}", hint=hint
            )
        if sha256_file(path) != entry.sha256:
            raise IntegrityError(
                f"{path} was changed: its SHA-256 differs from the manifest", hint=hint
            )
