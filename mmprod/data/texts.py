"""The captions that come with a folder of pictures:

Metadata tables, text files beside pictures, class folders. And which of them a mirrored picture
would make false.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mmprod.errors import ConfigError

TABLES = ("metadata.csv", "metadata.jsonl")
_COLUMNS = ("text", "caption")
_SIDES = re.compile(
    r"(?<![a-z])(left|right|(anti|counter)?-?clockwise)|[左右]|[顺逆順]时针", re.IGNORECASE
)


def read_tables(root: Path) -> dict[str, list[tuple[str, str]]]:
    """All metadata.csv and metadata.jsonl below `root`: picture -> its (language, text) pairs.

    Columns: `file_name` (relative to the table's folder), `text` or `caption`, and optionally
    `language`; several rows may name one picture. Keys are POSIX paths relative to `root`. Raises
    ConfigError for a malformed table.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    inside = root.resolve()
    for table in sorted(path for name in TABLES for path in root.rglob(name)):
        if not table.resolve().is_relative_to(inside):
            raise ConfigError(f"{table} is a link that leaves the folder", hint="copy it instead")
        folder = table.parent.relative_to(root)
        for number, row in _rows(table):
            name = row.get("file_name")
            text = next((row[column] for column in _COLUMNS if row.get(column)), None)
            if not isinstance(name, str) or not name:
                raise ConfigError(
                    f"{table}, row {number}: no file_name",
                    hint="columns: file_name, and text or caption",
                )
            if isinstance(text, str) and text.strip():
                key = (folder / name).as_posix()
                found.setdefault(key, []).append((str(row.get("language") or ""), text.strip()))
    return found


def read_sidecar(picture: Path) -> list[str]:
    """The non-empty lines of the .txt file beside a picture, none without such a file."""
    path = picture.with_suffix(".txt")
    if path.is_symlink() or not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def speaks_of_sides(caption: str) -> bool:
    """Whether a mirrored picture could make this English or Chinese caption false. Rather too often
    than too seldom: "all right" counts.
    """
    return _SIDES.search(caption) is not None


def class_caption(name: str) -> str:
    """A class folder's name as a caption: "red_apple" -> "red apple"."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def _rows(table: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number, row) of a CSV or JSON Lines table."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            if table.suffix == ".csv":
                for row in (reader := csv.DictReader(stream)):
                    yield reader.line_num, dict(row)
                return
            for number, line in enumerate(stream, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ConfigError(
                            f"{table}, row {number}: not an object", hint="one JSON object per line"
                        )
                    yield number, value
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{table} cannot be read: {error}", hint="UTF-8, one picture per row"
        ) from error
