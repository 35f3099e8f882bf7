"""What there is to index: the pictures below a folder, single files, or a prepared data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmprod.data.folder import scan
from mmprod.data.pictures import UnusablePicture, read_picture
from mmprod.data.store import Split, open_split, read_manifest
from mmprod.data.texts import read_sidecar, read_tables
from mmprod.errors import ConfigError
from mmprod.manifest import sha256_bytes, sha256_file
from mmprod.search.items import Entry, Pixels

Left = list[dict[str, str]]
"""files that were left out, each as {"file": ..., "reason": ...}"""


@dataclass(frozen=True)
class Taken:
    """What a model takes: pictures of `size` pixels a side, captions in `languages` (or in no known
    one).
    """

    size: int
    languages: Sequence[str]


def folder_entries(folder: Path, taken: Taken, left: Left) -> list[Entry]:
    """The pictures below a folder, by their absolute paths, with the captions of metadata tables or
    of text files beside them. What cannot be used is added to `left`. Raises ConfigError.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(
            f"{folder} {what}", hint="give a folder of pictures or a prepared data set"
        )
    root, tables = folder.resolve(), read_tables(folder)
    entries = []
    for name in scan(root, left):
        path = root / name
        fault = _fault(str(path))
        if fault:
            left.append({"file": name, "reason": fault})
            continue
        told = tables.get(name) or [("", text) for text in read_sidecar(path)]
        texts = [text for language, text in told if language in ("", *taken.languages)]
        load = partial(read_picture, path, taken.size)
        entries.append(Entry(str(path), tuple(texts), partial(sha256_file, path), load))
    for entry in left:
        file = str(root / entry["file"])
        entry["file"] = file.encode(errors="surrogateescape").decode(errors="replace")
    return entries


def data_entries(root: Path, splits: Sequence[str], taken: Taken) -> list[Entry]:
    """The samples of a prepared data set, named FOLDER/SPLIT/KEY. `splits` (): all of them.

    Raises ConfigError when its pictures are not of the model's size.
    """
    manifest = read_manifest(root)
    if manifest["size"] != taken.size:
        raise ConfigError(
            f"{root} has pictures of {manifest['size']} pixels, the model takes {taken.size}",
            hint=f"prepare it with --size {taken.size}, or index the folder of the pictures",
        )
    found: list[Entry] = []
    for name in splits or tuple(manifest["splits"]):
        split = open_split(root, name)
        places = np.arange(len(split))
        keys, texts = split.keys(places), split.texts(places, taken.languages)
        for place, key, captions in zip(places, keys, texts, strict=True):
            load = _sample(split, int(place))
            digest = _digest_of(load)
            found.append(Entry(f"{root.resolve() / name / key}", tuple(captions), digest, load))
    return found


@dataclass(frozen=True)
class Digests:
    """SHA-256 in hex of a picture alone, and of it with its captions."""

    content: str
    whole: str


def digests_of(entry: Entry) -> Digests | Exception:
    """What a picture and its captions are, or why it cannot be read."""
    try:
        content = entry.digest()
    except (UnusablePicture, OSError) as error:
        return error
    whole = json.dumps([content, *entry.captions])
    return Digests(content, hashlib.sha256(whole.encode()).hexdigest())


def _fault(name: str) -> str:
    """Why a path cannot be the name of a picture in an index; "" for nothing."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return "its name holds a line feed" if "\n" in name else ""


def _sample(split: Split, place: int) -> Callable[[], Pixels]:
    return lambda: split.images(np.array([place]))[0]


def _digest_of(load: Callable[[], Pixels]) -> Callable[[], str]:
    return lambda: sha256_bytes(load().tobytes())
