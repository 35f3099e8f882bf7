"""The items of an index in one LanceDB table. The only file that imports lancedb; its errors end
here.

    INDEX/items.lance/       data files, and a manifest for each version of the table

INDEX is a folder, or an address in an object store (s3://bucket/name, gs://..., az://...): the same
client and the same files, read and written by as many machines as there are. A write adds files and
then publishes a version by one atomic step, so whatever kills it leaves the version before, and a
reader sees one version whole. Versions that nobody needs go an hour later.
"""

from __future__ import annotations

import datetime
import logging
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

NAME = "items"
FOLDER = f"{NAME}.lance"
ABOUT = b"mmprod"
STORES = ("s3", "gs", "az")
"""object stores, by the scheme of an address; LanceDB knows more, and a service of its makers"""
PROBES = 32
"""partitions that a search looks into, of those whose centres are nearest"""
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
        made = _connect(place).create_table(NAME, schema=_schema(about))
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
        if not opened.schema.equals(_schema(about)):
            raise IntegrityError(f"{place} has other columns than an index", hint=f"again: {_MAKE}")
    return Table(place, opened, about)


class Table:
    """An opened index. Every read sees the newest version; several threads may read."""

    def __init__(self, place: str, table: Any, about: About) -> None:
        self.place = place
        self.about = about
        self._table = table
        self._schema = _schema(about)

    def put(self, items: Sequence[Item], replaced: Sequence[str]) -> None:
        """Add items in one atomic step that also takes away what the pictures named in `replaced`
        had before.
        """
        with _explained(self.place):
            if not replaced:
                if items:
                    self._table.add(self._rows(items))
                return
            (
                self._table.merge_insert("key")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(_any_of("name", replaced))
                .execute(self._rows(items))
            )

    def drop(self, names: Sequence[str]) -> None:
        """Take away pictures and their captions."""
        with _explained(self.place):
            for first in range(0, len(names), _AT_ONCE):
                self._table.delete(_any_of("name", names[first : first + _AT_ONCE]))

    def digests(self) -> dict[str, str]:
        """Name of each picture -> SHA-256 of it and its captions."""
        with _explained(self.place):
            found = self._table.search().where("kind = 'image'").select(["name", "digest"])
            rows = found.limit(self._table.count_rows()).to_arrow()
        return dict(zip(rows["name"].to_pylist(), rows["digest"].to_pylist(), strict=True))

    def nearest(self, vector: Vector, k: int, kind: Kind, *, exact: bool = False) -> list[Hit]:
        """The k items of a kind with the largest cosine to a unit vector (E,), best first.

        `exact`: compare with every item even where there are partitions.
        """
        with _explained(self.place):
            query = self._table.search(np.asarray(vector, np.float32), vector_column_name="vector")
            query = query.distance_type("dot").nprobes(PROBES).where(f"kind = '{kind}'")
            query = query.select(["name", "text", "_distance"]).limit(k)
            rows = (query.bypass_vector_index() if exact else query).to_arrow()
        columns = (rows[name].to_pylist() for name in ("name", "text", "_distance"))
        return [
            Hit(kind, name, text, 1.0 - distance)
            for name, text, distance in zip(*columns, strict=True)
        ]

    def codes(self, names: Sequence[str]) -> dict[str, np.ndarray[Any, np.dtype[np.int32]]]:
        """Codes (N,) int32 of those of these pictures that are there."""
        if not names:
            return {}
        with _explained(self.place):
            wanted = f"kind = 'image' AND {_any_of('name', names)}"
            rows = self._table.search().where(wanted).select(["name", "codes"])
            found = rows.limit(len(names)).to_arrow()
        return {
            name: np.frombuffer(codes, "<i4").astype(np.int32)
            for name, codes in zip(*(found[c].to_pylist() for c in ("name", "codes")), strict=True)
        }

    def items(self) -> Iterator[tuple[Item, int]]:
        """Every item with the check that was stored beside it."""
        with _explained(self.place):
            everything = self._table.search().limit(self._table.count_rows())
            for batch in everything.to_batches(batch_size=1024):
                vectors = batch["vector"].flatten().to_numpy().reshape(batch.num_rows, -1)
                rows = batch.drop_columns("vector").to_pylist()
                for row, vector in zip(rows, vectors, strict=True):
                    codes = None if row["codes"] is None else np.frombuffer(row["codes"], "<i4")
                    number = int(row["key"].rpartition("\n")[2])
                    same = {name: row[name] for name in ("kind", "name", "digest", "text")}
                    yield Item(**same, number=number, vector=vector, codes=codes), row["check"]

    def sample(self, count: int) -> Vector:
        """Vectors (B, E) of the first `count` pictures."""
        with _explained(self.place):
            rows = self._table.search().where("kind = 'image'").select(["vector"]).limit(count)
            flat = rows.to_arrow()["vector"].combine_chunks().flatten().to_numpy()
        return np.asarray(flat, np.float32).reshape(-1, self.about.embedding)

    def counts(self) -> dict[str, int]:
        """Pictures, captions, versions that are kept, and bytes of the newest."""
        with _explained(self.place):
            return {
                "bytes": int(self._table.stats()["total_bytes"]),
                "pictures": self._table.count_rows("kind = 'image'"),
                "captions": self._table.count_rows("kind = 'text'"),
                "versions": len(self._table.list_versions()),
            }

    @property
    def partitioned(self) -> bool:
        """Whether a search may look at a part of the items only."""
        with _explained(self.place):
            return bool(self._table.list_indices())

    def tidy(self) -> None:
        """Put small files together, drop old versions, take new items into the partitions."""
        with _explained(self.place):
            self._table.optimize(cleanup_older_than=KEPT)

    def partition(self) -> None:
        """Sort the vectors into partitions, so that a search need not look at all of them."""
        with _explained(self.place):
            self._table.create_index("vector", config=IvfFlat(distance_type="dot"))

    def _rows(self, items: Sequence[Item]) -> pa.Table:
        width = self.about.embedding
        flat = np.concatenate([item.vector for item in items] or [np.zeros(0, np.float32)])
        columns = [
            pa.array([item.key for item in items], pa.string()),
            *(
                pa.array([getattr(item, name) for item in items], pa.string())
                for name in ("kind", "name", "digest", "text")
            ),
            pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width),
            pa.array([_bytes(item) for item in items], pa.binary()),
            pa.array([item.check for item in items], pa.int64()),
        ]
        return pa.table(columns, schema=self._schema)


def _bytes(item: Item) -> bytes | None:
    return None if item.codes is None else item.codes.astype("<i4").tobytes()


def _schema(about: About) -> pa.Schema:
    texts = [pa.field(name, pa.string()) for name in ("key", "kind", "name", "digest", "text")]
    return pa.schema(
        [
            *texts,
            pa.field("vector", pa.list_(pa.float32(), about.embedding)),
            pa.field("codes", pa.binary()),
            pa.field("check", pa.int64()),
        ],
        metadata={ABOUT: about.dumps().encode()},
    )


def _any_of(column: str, values: Sequence[str]) -> str:
    """An SQL condition."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def _connect(place: str) -> Any:
    if is_remote(place) and place.partition("://")[0] not in STORES:
        known = ", ".join(f"{store}://" for store in STORES)
        raise ConfigError(f"{place} is no address that is known", hint=f"a folder, or {known}")
    # Every read looks for a newer version first.
    return lancedb.connect(place, read_consistency_interval=datetime.timedelta(0))


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """LanceDB's errors in our words. It raises built-in ones: RuntimeError, ValueError, OSError."""
    try:
        yield
    except MmprodError:
        raise
    except (RuntimeError, ValueError, OSError, pa.ArrowException) as error:
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
        raise IntegrityError(
            f"{place} cannot be read: {line}",
            hint=f"remove it and make it again: {_MAKE}",
        ) from error
