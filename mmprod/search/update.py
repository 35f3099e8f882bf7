"""An index brought up to date with the pictures: what is new is added, what changed is replaced.

Pictures go in by the hundred, each hundred in one atomic step. Whatever ends the work, the same
call goes on from there: what is in the index with the same SHA-256 is not embedded again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmprod.bundle.lock import lock_folder
from mmprod.data.folder import UNREAD
from mmprod.data.pictures import UnusablePicture, bombs_are_errors
from mmprod.errors import ConfigError
from mmprod.search.embed import Embedder
from mmprod.search.entries import Digests, Left, digests_of
from mmprod.search.items import Entry, Item, Pixels
from mmprod.search.table import Table, is_remote

STEP = 256
"""pictures of one atomic write"""
UNUSABLE = (None, errno.ENOENT, errno.ENOTDIR, errno.EINVAL)
"""errno where a picture is gone or its content is at fault; any other may pass. Pillow gives none,
or EINVAL for a place before the file's beginning"""


@dataclass
class Change:
    """What an update did: pictures added, replaced, left as they were, taken away, and captions
    written; `left`: pictures that cannot be read, with the reason.
    """

    added: int = 0
    replaced: int = 0
    same: int = 0
    gone: int = 0
    captions: int = 0
    left: Left = field(default_factory=list)


@dataclass(frozen=True)
class UpdateEvent:
    """Pictures that are looked at, and all there are."""

    done: int
    total: int


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Nobody else writes to the index within it. An object store has no such lock: there it is the
    user's care (docs/search.md). Raises EnvironmentMissing when another writer does not finish.
    """
    if is_remote(place):
        yield
        return
    with lock_folder(Path(place), "an index"):
        yield


def update(
    table: Table,
    embedder: Embedder,
    entries: Sequence[Entry],
    *,
    strict: bool = False,
    on_event: Callable[[UpdateEvent], None] | None = None,
) -> Change:
    """Bring these pictures into the index; others in it stay. Call it inside `writing`.

    What is no picture is left out, its former content is taken out of the index; where the system
    refused to read, that stays. With `strict` both raise ConfigError, and what was written before
    stays.
    """
    known, change = table.digests(), Change()
    vanished = []
    with bombs_are_errors(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for first in range(0, len(entries), STEP):
            part = entries[first : first + STEP]
            digests = list(pool.map(digests_of, part))
            fresh = [
                (entry, digest)
                for entry, digest in zip(part, digests, strict=True)
                if isinstance(digest, Exception) or known.get(entry.name) != digest.whole
            ]
            change.same += len(part) - len(fresh)
            loaded = pool.map(_load, fresh)
            whole = []
            for (entry, digest), pixels in zip(fresh, loaded, strict=True):
                if isinstance(digest, Digests) and not isinstance(pixels, Exception):
                    whole.append((entry, digest, pixels))
                    continue
                assert isinstance(pixels, Exception)  # `_load` passes on that of the digest
                change.left.append({"file": entry.name, "reason": _reason(pixels)})
                if entry.name in known and _number(pixels) in UNUSABLE:
                    vanished.append(entry.name)
            if strict:
                check_strict(change.left)
            _put(table, embedder, whole, known, change)
            if on_event is not None:
                on_event(UpdateEvent(min(first + STEP, len(entries)), len(entries)))
    table.drop(vanished)
    change.gone += len(vanished)
    return change


def prune(table: Table, folder: Path, entries: Iterable[Entry], left: Left) -> int:
    """Take away what lies below `folder` by its name and is not among the entries; how many. What
    the system would not let us look at may still be there, and stays.
    """
    here, present = f"{folder.resolve()}/", {entry.name for entry in entries}
    unread = [entry["file"] for entry in left if entry["reason"].startswith(UNREAD)]
    gone = [
        name
        for name in table.digests()
        if name.startswith(here) and name not in present
        if not any(f"{name}/".startswith(f"{path}/") for path in unread)
    ]
    table.drop(gone)
    return len(gone)


def _put(
    table: Table,
    embedder: Embedder,
    whole: Sequence[tuple[Entry, Digests, Pixels]],
    known: dict[str, str],
    change: Change,
) -> None:
    """Embed pictures and captions, and write them in one step."""
    if not whole:
        return
    embedded = embedder.pictures(np.stack([pixels for _, _, pixels in whole]))
    texts = [text for entry, _, _ in whole for text in entry.captions]
    vectors = iter(embedder.texts(texts) if texts else ())
    items = []
    for place, (entry, digest, _) in enumerate(whole):
        vector, codes = embedded.vectors[place], embedded.codes[place]
        same = len(entry.captions), digest.content
        items.append(Item("image", entry.name, 0, digest.whole, "", vector, codes, *same))
        items += [
            Item("text", entry.name, number, digest.whole, text, next(vectors), None, *same)
            for number, text in enumerate(entry.captions, 1)
        ]
    replaced = [entry.name for entry, _, _ in whole if entry.name in known]
    table.put(items, replaced)
    change.replaced += len(replaced)
    change.added += len(whole) - len(replaced)
    change.captions += len(texts)


def _load(fresh: tuple[Entry, Digests | Exception]) -> Pixels | Exception:
    """The pixels, or why there are none."""
    entry, digest = fresh
    if isinstance(digest, Exception):
        return digest
    try:
        return entry.load()
    except (UnusablePicture, OSError) as error:
        return error


def _number(error: Exception) -> int | None:
    """The system's number of an error; None for one that is not of the system."""
    cause = error.__cause__ if isinstance(error, UnusablePicture) else error
    return cause.errno if isinstance(cause, OSError) else None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def check_strict(left: Left) -> None:
    """Raise ConfigError for the first picture that is left out."""
    if left:
        raise ConfigError(
            f"{left[0]['file']} is of no use: {left[0]['reason']}",
            hint="mend or remove it, or leave --strict out; what was indexed stays",
        )
