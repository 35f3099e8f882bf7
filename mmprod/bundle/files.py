"""What makes a folder a bundle: bundle.json, and bundle.sha256 with the hash of its raw bytes.

`sha256sum -c bundle.sha256` works too. The check covers names, links, sizes, hashes and strangers.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from mmprod.bundle.artefact import Artefact
from mmprod.errors import IntegrityError
from mmprod.manifest import atomic_path, safe_join, sha256_bytes, verify_files

FORMAT = 1
INDEX = "bundle.json"
DIGEST = "bundle.sha256"
HINT = "copy the bundle again from where it was made, or export it anew"


def write_index(root: Path, content: dict[str, Any]) -> bytes:
    """Write bundle.json and then bundle.sha256, each whole or not at all. Returns the latter."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    line = _digest_line(data)
    with atomic_path(root / DIGEST) as digest:
        digest.write_bytes(line)
        with atomic_path(root / INDEX) as index:
            index.write_bytes(data)
    return line


def read_index(root: Path) -> tuple[dict[str, Any], bytes]:
    """bundle.json after its raw bytes were compared with bundle.sha256, and the content of the
    latter. Raises IntegrityError.
    """
    data = _read_plain(root / INDEX)
    line = _digest_line(data)
    if _read_plain(root / DIGEST) != line:
        raise IntegrityError(f"{root / INDEX} does not match {DIGEST}: one was changed", hint=HINT)
    try:
        content = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{root / INDEX} is not JSON: {error}", hint=HINT) from error
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or type(found) is not int or found != FORMAT:
        raise IntegrityError(
            f"{root / INDEX} has format {found!r}; this version of mmprod reads format {FORMAT}",
            hint="use the version of mmprod that wrote it, or export the run again with this one",
        )
    return content, line


def check_current(root: Path, line: bytes | None) -> None:
    """bundle.sha256 still holds `line` (None: there is none yet). Raises IntegrityError."""
    found = _read_plain(root / DIGEST) if (root / DIGEST).exists() else None
    if found != line:
        raise IntegrityError(
            f"{root} was changed by another process meanwhile",
            hint="let one command at a time write to a bundle: run this one again",
        )


def check_folder(root: Path, artefacts: Iterable[Artefact]) -> None:
    """Each artefact is there unchanged; no link, no unlisted file. Raises IntegrityError."""
    listed = {a.path: a for a in artefacts}
    check_no_strangers(root, listed)
    check_artefacts(root, listed.values())


def check_no_strangers(root: Path, listed: Container[str]) -> None:
    """Every file of the folder is the bundle's own or `listed`. Raises IntegrityError."""
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        if name not in listed and name not in (INDEX, DIGEST):
            raise IntegrityError(
                f"{path} is not listed in {INDEX}",
                hint="delete it if it is a leftover; a bundle holds only what it lists",
            )


def check_artefacts(root: Path, artefacts: Iterable[Artefact]) -> None:
    """These artefacts are there unchanged, reached through no link. Raises IntegrityError."""
    chosen = list(artefacts)
    for artefact in chosen:
        plain_path(root, artefact.path)
    verify_files(root, (a.entry for a in chosen), hint=HINT)


def plain_path(root: Path, relative: str) -> Path:
    """`root / relative`, refusing paths that leave the folder and symbolic links on the way."""
    path = safe_join(root, relative)
    for part in (path, *path.parents):
        if part == root:
            break
        if part.is_symlink():
            raise IntegrityError(
                f"{part} is a symbolic link; a bundle holds plain files", hint=HINT
            )
    return path


def _walk(root: Path) -> Iterable[Path]:
    """All files below `root`. Raises IntegrityError at a link or anything that is no plain file."""
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise IntegrityError(f"{path} is not a plain file", hint=HINT)
        yield from (Path(folder, name) for name in files)


def _unreadable(error: OSError) -> None:
    raise IntegrityError(f"{error.filename} cannot be read: {error.strerror}") from error


def _digest_line(data: bytes) -> bytes:
    return f"{sha256_bytes(data)}  {INDEX}\n".encode()


def _read_plain(path: Path) -> bytes:
    """The bytes of a plain file beside the artefacts."""
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(
            f"{path} is missing or not a plain file",
            hint="is this the folder of a bundle? `mmprod export RUN` writes one",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", hint=HINT) from error
