"""The items of an index in one LanceDB table. The only file that imports lancedb; its errors end
here.

    INDEX/items.lance/       data files, and a manifest for each version of the table

INDEX is a folder, or an address in an object store (s3://bucket/name, gs://..., az://...): the same
client and the same files, read and written by as many machines as there are. A write adds files and
then publishes a version by one atomic step, so a kill leaves the version before, and a reader
sees one version whole. Versions that nobody needs go an hour later. LanceDB leaves it to the system
when files reach the disk: a power cut may take the last versions.

Pictures and captions have a vector column each. Towers leave a gap between the two kinds, so
partitions of both would lead a text to texts.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from mmprod.bundle.lock import lock_folder
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, MmprodError, as_os_error
from mmprod.search.about import About
from mmprod.search.items import Hit, Item, Kind, Vector
from mmprod.search.rows import ABOUT, TEXTS, VECTOR, any_of, rows_of, schema_of, vectors_of

NAME = "items"
FOLDER = f"{NAME}.lance"
STORES = ("s3", "gs", "az")
"""object stores, by the scheme of an address; LanceDB knows more, and a service of its makers"""
PROBES = 96
"""partitions that a search looks into at least, of those whose centres are nearest; items of a kind
are sorted into as many as the root of their number, so below PROBES ** 2 nothing would be saved"""
ALL = 2**31 - 1
"""a limit that cuts nothing: to count first would be to look at another version"""
KEPT = datetime.timedelta(hours=1)
"""how long a version stays that a reader may still use"""
_AT_ONCE = 500
_MAKE = "mmprod search index SOURCE PICTURES --out INDEX"

logger = logging.getLogger(__name__)


def is_remote(place: str) -> bool:
    """Whether an index lies in an object store."""
    return "://" in place


def is_table(place: str) -> bool:
    """Whether there is an index."""
    if not is_remote(place):
        return any((Path(place) / FOLDER / "_versions").glob("*.manifest"))
    with _explained(place):
        return NAME in _connect(place).list_tables().tables


def create_table(place: str, about: About) -> Table:
    """An empty index. Raises ConfigError where there is one, or a folder of other things."""
    if is_remote(place):
        return _create(place, about)
    folder = Path(place)
    others = folder.is_dir() and any(path.name != FOLDER for path in folder.iterdir())
    if others or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{place} exists and is no index", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "an index"):
        return _create(place, about)


def _create(place: str, about: About) -> Table:
    if is_table(place):
        raise ConfigError(f"{place} is an index already", hint="run the command again to add to it")
    with _explained(place):
        made = _connect(place).create_table(NAME, schema=schema_of(about))
    return Table(place, made, about)


def open_table(place: str) -> Table:
    """An index that is there. Raises ConfigError where there is none, IntegrityError for one that
    cannot be read.
    """
    if not is_table(place):
        raise ConfigError(f"{place} is no index", hint=f"make one: {_MAKE}")
    with _explained(place):
        opened = _connect(place).open_table(NAME)
        about = About.parse(((opened.schema.metadata or {}).get(ABOUT, b"")).decode(), place)
        if not opened.schema.equals(schema_of(about)):
            raise IntegrityError(f"{place} has other columns than an index", hint=f"again: {_MAKE}")
    return Table(place, opened, about)


class Table:
    """An opened index. Every read sees the newest version; several threads may read."""

    def __init__(self, place: str, table: Any, about: About) -> None:
        self.place = place
        self.about = about
        self._table = table

    def put(self, items: Sequence[Item], replaced: Sequence[str]) -> None:
        """Add items in one atomic step that also takes away what the pictures named in `replaced`
        had before.
        """
        with _explained(self.place):
            if not replaced:
                if items:
                    self._table.add(rows_of(items, self.about), on_bad_vectors="null")
                return
            (
                self._table.merge_insert("key")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(any_of("name", replaced))
                # Else it takes a row without a vector, as there is of the other kind, for an error.
                .execute(rows_of(items, self.about), on_bad_vectors="null")
            )

    def drop(self, names: Sequence[str]) -> None:
        """Take away pictures and their captions."""
        with _explained(self.place):
            for first in range(0, len(names), _AT_ONCE):
                self._table.delete(any_of("name", names[first : first + _AT_ONCE]))

    def digests(self) -> dict[str, str]:
        """Name of each picture -> SHA-256 of it and its captions."""
        with _explained(self.place):
            found = self._table.search().where("kind = 'image'").select(["name", "digest"])
            rows = found.limit(ALL).to_arrow()
        return dict(zip(rows["name"].to_pylist(), rows["digest"].to_pylist(), strict=True))

    def nearest(
        self, vector: Vector, k: int, kind: Kind, *, exact: bool = False, known: Sequence[str] = ()
    ) -> list[Hit]:
        """The k items of a kind with the largest cosine to a unit vector (E,), best first.

        `exact`: compare with every item even where there are partitions. `known`: texts that need
        not be found any more.
        """
        wanted = f"kind = '{kind}'" + (f" AND NOT {any_of('text', known)}" if known else "")
        fields = ["name", "text", "content", "_distance"]
        with _explained(self.place):
            asked = np.asarray(vector, np.float32)
            query = self._table.search(asked, vector_column_name=VECTOR[kind])
            # 0: where the nearest partitions hold less than k of what is wanted, look into others.
            query = query.distance_type("cosine").minimum_nprobes(PROBES).maximum_nprobes(0)
            query = query.where(wanted).select(fields).limit(k)
            rows = (query.bypass_vector_index() if exact else query).to_arrow()
        return [
            Hit(kind, name, text, 1.0 - distance, content)
            for name, text, content, distance in zip(
                *(rows[name].to_pylist() for name in fields), strict=True
            )
        ]

    def codes(self, names: Sequence[str]) -> dict[str, np.ndarray[Any, np.dtype[np.int32]]]:
        """Codes (N,) int32 of those of these pictures that are there."""
        if not names:
            return {}
        with _explained(self.place):
            wanted = f"kind = 'image' AND {any_of('name', names)}"
            rows = self._table.search().where(wanted).select(["name", "codes"])
            found = rows.limit(len(names)).to_arrow()
        return {
            name: np.frombuffer(codes, "<i4").astype(np.int32)
            for name, codes in zip(*(found[c].to_pylist() for c in ("name", "codes")), strict=True)
        }

    def items(self) -> Iterator[tuple[Item, int]]:
        """Every item with the check that was stored beside it."""
        with _explained(self.place):
            for batch in self._table.search().limit(ALL).to_batches(batch_size=1024):
                vectors = vectors_of(batch)
                for row in batch.drop_columns([*VECTOR.values()]).to_pylist():
                    codes = None if row["codes"] is None else np.frombuffer(row["codes"], "<i4")
                    number = int(row["key"].rpartition("\n")[2])
                    vector = next(vectors)
                    same = {name: row[name] for name in (*TEXTS[1:], "captions")}
                    yield Item(**same, number=number, vector=vector, codes=codes), row["check"]

    def sample(self, kind: Kind, count: int) -> list[tuple[str, str, Vector]]:
        """Name, text and vector (E,) of `count` items of a kind, drawn with a fixed seed."""
        with _explained(self.place):
            found = self._table.search().where(f"kind = '{kind}'").select(["key"]).limit(ALL)
            keys = sorted(found.to_arrow()["key"].to_pylist())
            places = np.random.default_rng(0).choice(len(keys), min(count, len(keys)), False)
            if not keys:
                return []
            drawn = any_of("key", [keys[place] for place in places])
            fields = ["name", "text", VECTOR[kind]]
            rows = self._table.search().where(drawn).select(fields).limit(ALL).to_arrow()
        columns = (rows[name].to_pylist() for name in fields)
        return [(n, t, np.array(v, np.float32)) for n, t, v in zip(*columns, strict=True)]

    def counts(self) -> dict[str, int]:
        """Pictures, captions, versions that are kept, and bytes of the newest."""
        with _explained(self.place):
            return {
                "bytes": int(self._table.stats()["total_bytes"]),
                "pictures": self._table.count_rows("kind = 'image'"),
                "captions": self._table.count_rows("kind = 'text'"),
                "versions": len(self._table.list_versions()),
            }

    def partitioned(self, kind: Kind) -> bool:
        """Whether a search for a kind may look at a part of the items only."""
        with _explained(self.place):
            return any(index.columns == [VECTOR[kind]] for index in self._table.list_indices())

    def tidy(self) -> None:
        """Put small files together, drop old versions, take new items into the partitions."""
        with _explained(self.place):
            self._table.optimize(cleanup_older_than=KEPT)

    def partition(self) -> dict[Kind, int]:
        """Sort the vectors of each kind into partitions, so that a search need not look at all of
        them. How many there are; 0 where they would save nothing.
        """
        made: dict[Kind, int] = {}
        with _explained(self.place):
            for kind, column in VECTOR.items():
                count = round(math.sqrt(self._table.count_rows(f"kind = '{kind}'")))
                made[kind] = count if count > PROBES else 0
                if made[kind]:
                    config = IvfFlat(distance_type="cosine", num_partitions=count)
                    self._table.create_index(column, config=config)
                    continue
                for index in self._table.list_indices():
                    if index.columns == [column]:
                        self._table.drop_index(index.name)
        return made

    def discard(self) -> None:
        """Remove an index that was made in vain. Call it inside `writing`."""
        with _explained(self.place):
            _connect(self.place).drop_table(NAME)
        if not is_remote(self.place):
            with contextlib.suppress(OSError):  # a folder that holds other things stays
                Path(self.place).rmdir()


def _connect(place: str) -> Any:
    if is_remote(place) and place.partition("://")[0] not in STORES:
        known = ", ".join(f"{store}://" for store in STORES)
        raise ConfigError(f"{place} is no address that is known", hint=f"a folder, or {known}")
    # Every read looks for a newer version first.
    return lancedb.connect(place, read_consistency_interval=datetime.timedelta(0))


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """LanceDB's errors in our words. It raises built-in ones: RuntimeError, ValueError, OSError;
    where damage makes its Rust panic, one of a class that has a name only.
    """
    try:
        yield
    except (MmprodError, UnicodeError):
        raise
    except Exception as error:
        panic = type(error).__name__ == "RustPanic"
        if not panic and not isinstance(
            error, (RuntimeError, ValueError, OSError, pa.ArrowException)
        ):
            raise
        logger.debug("refused by lancedb", exc_info=error)
        refusal = as_os_error(error, Path(place)) if not is_remote(place) else None
        if refusal is not None:
            raise refusal from error
        line = str(error).strip().partition("\n")[0][:300]
        if is_remote(place):
            raise EnvironmentMissing(
                f"{place} cannot be used: {line}",
                hint="check the address, and the keys and endpoint in the environment "
                "(docs/search.md)",
            ) from error
        if "onflict" in line:  # "Retryable commit conflict", "Too many concurrent writers"
            raise EnvironmentMissing(
                f"another command wrote to {place} meanwhile: {line}", hint="run it again"
            ) from error
        raise IntegrityError(
            f"{place} cannot be read: {line}",
            hint=f"try again; if it stays so, make a new index in another place: {_MAKE}",
        ) from error
