"""What makes a folder a bundle: bundle.json, bundle.sha256 with the hash of its raw bytes, and
bundle.sig when somebody signed it (its hash stands in bundle.sha256 too).

`sha256sum -c bundle.sha256` works too. The check covers names, links, sizes, hashes and strangers.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.bundle.artefact import Artefact
from mmprod.bundle.strict import strict_json
from mmprod.errors import IntegrityError
from mmprod.manifest import atomic_path, safe_join, sha256_bytes, verify_files

FORMAT = 1
INDEX = "bundle.json"
DIGEST = "bundle.sha256"
SIGNATURE = "bundle.sig"
OWN = frozenset({INDEX, DIGEST, SIGNATURE})
"""The bundle's own files, which bundle.json does not list."""
MOST_BYTES = {INDEX: 64 * 2**20, DIGEST: 4096, SIGNATURE: 64 * 2**10}
"""None of them is larger; a larger one is refused unread."""
HINT = "copy the bundle again from where it was made, or export it anew"


@dataclass(frozen=True)
class Index:
    """The bundle's own files as they were read, each once: what was checked is what is used.

    content and data: bundle.json, parsed and raw; line: bundle.sha256; signature: bundle.sig, None
    where there is none.
    """

    content: dict[str, Any]
    data: bytes
    line: bytes
    signature: bytes | None


def write_index(root: Path, content: dict[str, Any]) -> bytes:
    """Write bundle.json and then bundle.sha256, each whole or not at all; a signature of what was
    there before goes first. Returns the content of bundle.sha256.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    line = _digest_lines(data, None)
    with atomic_path(root / DIGEST) as digest:
        digest.write_bytes(line)
        with atomic_path(root / INDEX) as index:
            index.write_bytes(data)
            (root / SIGNATURE).unlink(missing_ok=True)
    return line


def write_signature(root: Path, data: bytes, signature: bytes) -> bytes:
    """Put a signature beside bundle.json, which holds `data`. Returns bundle.sha256's content."""
    line = _digest_lines(data, signature)
    with atomic_path(root / DIGEST) as digest:
        digest.write_bytes(line)
        with atomic_path(root / SIGNATURE) as place:
            place.write_bytes(signature)
    return line


def read_index(root: Path) -> Index:
    """The bundle's own files after their raw bytes were compared with bundle.sha256. Whose
    signature it is remains to be asked (signing.py). Raises IntegrityError.
    """
    data = _read_plain(root / INDEX)
    signed = os.path.lexists(root / SIGNATURE)
    signature = _read_plain(root / SIGNATURE) if signed else None
    line = _digest_lines(data, signature)
    if _read_plain(root / DIGEST) != line:
        raise IntegrityError(
            f"{root / INDEX}{f' or {SIGNATURE}' if signed else ''} does not match {DIGEST}: "
            "one was changed",
            hint=HINT,
        )
    content = strict_json(data, root / INDEX, hint=HINT)
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or type(found) is not int or found != FORMAT:
        raise IntegrityError(
            f"{root / INDEX} has format {found!r}; this version of mmprod reads format {FORMAT}",
            hint="use the version of mmprod that wrote it, or export the run again with this one",
        )
    return Index(content, data, line, signature)


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
        if name not in listed and name not in OWN:
            raise IntegrityError(
                f"{_named(path)} is not listed in {INDEX}",
                hint="delete it if it is a leftover; a bundle holds only what it lists",
            )


def check_artefacts(root: Path, artefacts: Iterable[Artefact]) -> None:
    """These artefacts are there unchanged, reached through no link. Raises IntegrityError."""
    chosen = list(artefacts)
    for artefact in chosen:
        _check_single(plain_path(root, artefact.path))
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


def _check_single(path: Path) -> None:
    """A second name of the same file could change it after the check. Raises IntegrityError."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return  # `verify_files` says so
    if stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
        raise IntegrityError(
            f"{path} is a hard link: the same file has {about.st_nlink} names",
            hint="copy the folder (cp -r), then every file is the bundle's own",
        )


def _walk(root: Path) -> Iterable[Path]:
    """All files below `root`. Raises IntegrityError at a link or anything that is no plain file."""
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise IntegrityError(f"{_named(path)} is not a plain file", hint=HINT)
        yield from (Path(folder, name) for name in files)


def _named(path: Path) -> str:
    """A path that a stranger chose: what a terminal would obey, or cannot show, is escaped."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _unreadable(error: OSError) -> None:
    raise IntegrityError(
        f"{_named(Path(error.filename))} cannot be read: {error.strerror}"
    ) from error


def _digest_lines(data: bytes, signature: bytes | None) -> bytes:
    """The content of bundle.sha256, as sha256sum writes it."""
    lines = f"{sha256_bytes(data)}  {INDEX}\n"
    if signature is not None:
        lines += f"{sha256_bytes(signature)}  {SIGNATURE}\n"
    return lines.encode()


def _read_plain(path: Path) -> bytes:
    """The bytes of one of the bundle's own files."""
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(
            f"{path} is missing or not a plain file",
            hint="is this the folder of a bundle? `mmprod export RUN` writes one",
        )
    _check_single(path)
    most = MOST_BYTES[path.name]
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", hint=HINT) from error
    if len(data) > most:
        raise IntegrityError(f"{path} is larger than {most} bytes", hint=HINT)
    return data
