"""Writing a prepared data set, whole or not at all; `store.py` describes and reads the files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmprod.data.store import FORMAT, MANIFEST, schema
from mmprod.errors import ConfigError
from mmprod.manifest import FileEntry, write_json

_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Caption:
    """One text of a picture and its language ("en", "zh", ...; "" when it is unknown)."""

    language: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One picture: a key unique within the data set, image (H, W, 3) uint8, what is known of it."""

    key: str
    image: NDArray[np.uint8]
    captions: tuple[Caption, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class DataInfo:
    """Where the pictures come from and how; goes into the manifest as it is."""

    source: str
    size: int
    seed: int
    generator: dict[str, Any]
    licences: tuple[str, ...] = ()


class DataWriter:
    """Writes a prepared data set; as a context manager: `with DataWriter(out, info) as writer:
    writer.add(...)`.

    Leaving the block without an error publishes the folder by one rename; with an error nothing is
    left behind. Raises ConfigError when `out` exists and is not an empty folder.
    """

    def __init__(self, out: Path, info: DataInfo) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                f"{out} exists already", hint="remove it, or choose another output folder"
            )
        self.skipped: list[dict[str, str]] = []
        """Source files that were left out, each as {"file": ..., "reason": ...}."""
        self._out, self._info = out, info
        self._splits: dict[str, _SplitWriter] = {}

    def __enter__(self) -> DataWriter:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=self._out.parent, prefix=f".{self._out.name}."))
        return self

    def add(self, split: str, sample: Sample) -> None:
        """Append one sample to a split."""
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self._folder / split / "data.arrow", self._info.size)
        self._splits[split].add(sample)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for split in self._splits.values():
                split.close()
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _publish(self) -> None:
        if not self._splits:
            raise ConfigError(
                f"no samples for {self._out}", hint="check the source of the pictures"
            )
        splits = {
            name: {"count": split.count, "weighted": split.weighted}
            for name, split in self._splits.items()
        }
        files = [
            FileEntry.of(self._folder, split.path).as_dict() for split in self._splits.values()
        ]
        info = asdict(self._info) | {"licences": list(self._info.licences)}
        manifest = {"kind": "data", "format": FORMAT, **info, "splits": splits, "files": files}
        write_json(self._folder / MANIFEST, manifest | {"skipped": self.skipped})
        self._folder.chmod(0o755)
        self._folder.replace(self._out)


class _SplitWriter:
    """Streams the samples of one split into an Arrow file, a few hundred rows at a time."""

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True)
        self.path, self.count, self.weighted = path, 0, False
        self._size = size
        self._rows: list[Sample] = []
        self._schema = schema(size)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def add(self, sample: Sample) -> None:
        if sample.image.shape != (self._size, self._size, 3) or sample.image.dtype != np.uint8:
            raise ValueError(
                f"{sample.key}: image {sample.image.shape} {sample.image.dtype}, size {self._size}"
            )
        self._rows.append(sample)
        self.count += 1
        self.weighted = self.weighted or sample.weight != 1.0
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        columns = [
            [row.key for row in rows],
            [row.image.tobytes() for row in rows],
            [_dumps([asdict(caption) for caption in row.captions]) for row in rows],
            [_dumps(row.attributes) if row.attributes else "" for row in rows],
            [row.weight for row in rows],
        ]
        arrays = [
            pa.array(column, kind.type) for column, kind in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._sink.close()
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
