"""Any folder of pictures becomes a prepared data set.

    source/**/picture.jpg         two or more subfolders are classes (ImageFolder layout)
    source/{train,val,test}/**    given splits are kept; missing ones are drawn from train, 5 % each
    captions                      metadata.csv or .jsonl, else picture.txt, else the class's name

Pictures with equal pixels never fall into two drawn splits. Files that cannot be used are left out,
logged, and listed in data.json. Links that leave the source folder are not followed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mmprod.data.pictures import SUFFIXES, UnusablePicture, bombs_are_errors, read_picture
from mmprod.data.spool import Spool
from mmprod.data.texts import class_caption, read_sidecar, read_tables
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_IN_FLIGHT = 256
UNREAD = "cannot be read"
"""How the reason begins where the system would not let us look: what lies there is not known."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    """A usable picture:

    Place in the spool, path below the source, split, class or "", pixel hash.
    """

    place: int
    name: str
    split: str
    kind: str
    digest: bytes


def prepare_folder(source: Path, out: Path, *, size: int, seed: int, workers: int = 0) -> None:
    """Make the data set `out` from the pictures below `source`, each size x size pixels.

    With two or more classes every sample carries its class as an attribute, and train is weighted
    by inverse class frequency, so that classes are seen equally often. `workers`: decoding threads,
    0 means one per CPU. Raises ConfigError when there are fewer than three different pictures.
    """
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder", hint="give the folder of the pictures")
    if not 8 <= size <= 4096:
        raise ConfigError(f"picture size {size}", hint="8 to 4096 pixels")
    info = DataInfo(
        source="folder",
        size=size,
        seed=seed,
        generator={name: metadata.version(name) for name in ("pillow", "numpy")},
    )
    with DataWriter(out, info) as writer, Spool(out.parent, size) as spool:
        names = list(scan(source, writer.skipped))
        hashes: dict[str, bytes] = {}
        for name, result in _decode(source, names, size, workers):
            if isinstance(result, str):
                writer.skipped.append({"file": name, "reason": result})
            else:
                _, hashes[name] = spool.append(result)
        pictures = _draw_splits(_layout(hashes), seed, source)
        captions = _captions(source, pictures, writer.skipped)
        _log(writer.skipped)
        weights = _weights([picture.kind for picture in pictures if picture.split == "train"])
        for picture in sorted(pictures, key=lambda p: (list(_SPLITS).index(p.split), p.name)):
            sample = Sample(
                key=picture.name,
                image=spool.read(picture.place),
                captions=captions[picture.name],
                attributes={"class": picture.kind} if picture.kind else {},
                weight=weights[picture.kind] if picture.split == "train" else 1.0,
            )
            writer.add(picture.split, sample)


def scan(source: Path, skipped: list[dict[str, str]]) -> Iterator[str]:
    """Paths of the picture files below `source`, sorted, as POSIX text; hidden ones are ignored.

    What is left out is added to `skipped` as {"file": ..., "reason": ...}.
    """
    root = source.resolve()

    def unread(error: OSError) -> None:
        name = Path(error.filename).relative_to(source).as_posix()
        skipped.append({"file": name, "reason": f"{UNREAD}: {error.strerror}"})

    for folder, subfolders, files in os.walk(source, onerror=unread):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for link in (here / name for name in subfolders if (here / name).is_symlink()):
            name = link.relative_to(source).as_posix()
            skipped.append({"file": name, "reason": "linked folders are not followed"})
        for path in (here / name for name in sorted(files) if not name.startswith(".")):
            name = path.relative_to(source).as_posix()
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                regular = path.is_file()
            except OSError as error:  # a folder that may be listed, but not entered
                unread(error)
                continue
            if not path.resolve().is_relative_to(root):
                skipped.append({"file": name, "reason": "a link that leaves the folder"})
            elif not regular:
                skipped.append({"file": name, "reason": "not a regular file"})
            else:
                yield name


def _decode(
    source: Path, names: Sequence[str], size: int, workers: int
) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
    """Each name with its pixels (size, size, 3), or with the reason why it has none."""

    def load(name: str) -> NDArray[np.uint8] | str:
        try:
            return read_picture(source / name, size)
        except UnusablePicture as error:
            return str(error)

    # Threads suffice: Pillow decodes and scales without holding the interpreter lock.
    threads = workers or len(os.sched_getaffinity(0))
    with bombs_are_errors(), ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), _IN_FLIGHT):
            part = names[start : start + _IN_FLIGHT]
            yield from zip(part, pool.map(load, part), strict=True)


def _layout(hashes: dict[str, bytes]) -> list[_Picture]:
    """Read split and class off the folders' names; `hashes`: path -> pixel hash, in spool order."""
    folders = {name: PurePosixPath(name).parts[:-1] for name in hashes}
    tops = {parts[0] if parts else "" for parts in folders.values()}
    given = "train" in tops and tops <= set(_SPLITS)
    rests = {name: parts[1:] if given else parts for name, parts in folders.items()}
    kinds = {name: parts[0] if parts else "" for name, parts in rests.items()}
    classes = len(set(kinds.values()) - {""}) >= 2
    return [
        _Picture(
            place=place,
            name=name,
            split=_SPLITS[folders[name][0]] if given else "train",
            kind=kinds[name] if classes else "",
            digest=digest,
        )
        for place, (name, digest) in enumerate(hashes.items())
    ]


def _draw_splits(pictures: list[_Picture], seed: int, source: Path) -> list[_Picture]:
    """Move 5 % of train, at least one picture, to each of val and test that is not there."""
    missing = [split for split in ("val", "test") if all(p.split != split for p in pictures)]
    different = {picture.digest for picture in pictures if picture.split == "train"}
    if len(different) <= len(missing):
        raise ConfigError(
            f"{source} holds {len(different)} different usable pictures for training, too few",
            hint=f"at least {len(missing) + 1}, as {', '.join(sorted(SUFFIXES))}; subfolders count",
        )
    salt = str(seed).encode()
    ranked = sorted(different, key=lambda digest: hashlib.sha256(salt + digest).digest())
    each = max(1, len(ranked) // 20)
    moved = {
        digest: split
        for place, split in enumerate(missing)
        for digest in ranked[place * each : (place + 1) * each]
    }
    return [
        replace(p, split=moved.get(p.digest, "train")) if p.split == "train" else p
        for p in pictures
    ]


def _captions(
    source: Path, pictures: list[_Picture], skipped: list[dict[str, str]]
) -> dict[str, tuple[Caption, ...]]:
    tables = read_tables(source)
    known = {picture.name for picture in pictures} | {entry["file"] for entry in skipped}
    for name in sorted(set(tables) - known):
        skipped.append({"file": name, "reason": "in a metadata table, but not in the folder"})
    captions = {}
    for picture in pictures:
        found = tables.get(picture.name) or [
            ("", text) for text in read_sidecar(source / picture.name)
        ]
        if not found and picture.kind:
            found = [("", class_caption(picture.kind))]
        captions[picture.name] = tuple(Caption(language, text) for language, text in found)
    return captions


def _weights(kinds: Sequence[str]) -> dict[str, float]:
    """Class -> inverse frequency; the mean over the samples is 1."""
    counts = Counter(kinds)
    return {kind: len(kinds) / (len(counts) * count) for kind, count in counts.items()}


def _log(skipped: list[dict[str, str]]) -> None:
    for entry in skipped[:20]:
        logger.warning("left out %s: %s", entry["file"], entry["reason"])
    if len(skipped) > 20:
        logger.warning("left out %d more; all are listed in data.json", len(skipped) - 20)
