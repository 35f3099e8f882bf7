"""Items as rows of an Arrow table: the form in which an index keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from mmprod.search.about import About
from mmprod.search.items import Item, Kind, Vector

ABOUT = b"mmprod"
TEXTS = ("key", "kind", "name", "digest", "content", "text")
VECTOR: dict[Kind, str] = {"image": "picture_vector", "text": "caption_vector"}
"""columns; of the other kind's a row has none"""


def schema_of(about: About) -> pa.Schema:
    """The columns, and in their metadata which model made the embeddings."""
    width = about.embedding
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in TEXTS),
            *(pa.field(column, pa.list_(pa.float32(), width)) for column in VECTOR.values()),
            pa.field("captions", pa.int32()),
            pa.field("codes", pa.binary()),
            pa.field("check", pa.int64()),
        ],
        metadata={ABOUT: about.dumps().encode()},
    )


def rows_of(items: Sequence[Item], about: About) -> pa.Table:
    """Items as rows."""
    columns = [
        *(pa.array([getattr(item, name) for item in items], pa.string()) for name in TEXTS),
        *(_vectors(items, kind, about.embedding) for kind in VECTOR),
        pa.array([item.captions for item in items], pa.int32()),
        pa.array([_bytes(item) for item in items], pa.binary()),
        pa.array([item.check for item in items], pa.int64()),
    ]
    return pa.table(columns, schema=schema_of(about))


def vectors_of(batch: pa.RecordBatch) -> Iterator[Vector]:
    """The vector (E,) of each row, in the column of its kind; (0,) where there is none."""
    valid = {kind: batch[column].is_valid().to_pylist() for kind, column in VECTOR.items()}
    held = {}
    for kind, column in VECTOR.items():
        flat = batch[column].flatten().to_numpy()  # without what is not there
        held[kind] = iter(flat.reshape(-1, batch[column].type.list_size))
    for place, kind in enumerate(batch["kind"].to_pylist()):
        none = np.zeros(0, np.float32)
        found = {name: next(held[name]) if valid[name][place] else none for name in VECTOR}
        yield found.get(kind, none)


def any_of(column: str, values: Sequence[str]) -> str:
    """An SQL condition: the column has one of the values."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def _vectors(items: Sequence[Item], kind: Kind, width: int) -> pa.Array:
    """The column of one kind: nothing for the other."""
    rows = np.zeros((len(items), width), np.float32)
    absent = np.ones(len(items), np.bool_)
    for place, item in enumerate(items):
        if item.kind == kind:
            rows[place], absent[place] = item.vector, False
    flat = pa.array(rows.ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(absent))


def _bytes(item: Item) -> bytes | None:
    return None if item.codes is None else item.codes.astype("<i4").tobytes()
