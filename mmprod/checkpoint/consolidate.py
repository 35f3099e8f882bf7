"""A step folder of any number of ranks -> whole weights in one file, piece by piece. Torch-free.

The file is what training itself leaves as model.safetensors: parameters and buffers of the model
without the losses around it, the codebook's meaning in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mmprod.checkpoint import layout
from mmprod.checkpoint.state import (
    AVERAGE,
    BUFFERS,
    FROZEN,
    WEIGHT,
    Part,
    Whole,
    key,
    read_index,
)
from mmprod.checkpoint.steps import verify_step
from mmprod.checkpoint.tensor_file import TensorSource, Written, write_tensors
from mmprod.errors import IntegrityError
from mmprod.manifest import atomic_path

T = TypeVar("T")
Weights = Literal["ema", "raw"]
FIELDS: dict[str, str] = {"ema": AVERAGE, "raw": WEIGHT}
BLOCK = 1 << 22
"""elements read at a time"""


@dataclass(frozen=True)
class Step:
    """A step folder whose files were checked: where each parameter lies in them."""

    path: Path
    manifest: Mapping[str, Any]
    index: Mapping[str, Whole]

    @property
    def files(self) -> Path:
        """The folder of its tensors."""
        return self.path / str(self.manifest["folder"])

    def with_aliases(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """The same with shared weights under all of their names."""
        aliases = self.manifest["model"]["aliases"]
        return {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}

    def field(self, whole: Whole, field: str) -> npt.NDArray[np.float32]:
        """One field of a parameter, whole."""
        flat = np.empty(whole.numel, np.float32)
        start = 0
        for block in self.blocks(whole, field):
            flat[start : start + len(block)] = block
            start += len(block)
        return flat.reshape(whole.shape)

    def fields(self, whole: Whole) -> list[str]:
        """What is kept for a parameter: weight, average and the optimizer's moments."""
        with safe_open(self.files / whole.parts[0].file, "numpy") as stored:
            names = [name.partition("/") for name in stored.keys()]  # noqa: SIM118 (no mapping)
        return sorted(field for field, _, name in names if name == whole.name)

    def blocks(self, whole: Whole, field: str) -> Iterator[npt.NDArray[np.float32]]:
        """The elements of a field in order. Raises IntegrityError."""
        for part in whole.parts:
            yield from self._part(part, key(field, whole.name))

    def _part(self, part: Part, name: str) -> Iterator[npt.NDArray[np.float32]]:
        path = self.files / part.file
        try:
            with safe_open(path, "numpy") as stored:
                tensor = stored.get_slice(name)
                for start in range(0, part.n, BLOCK):
                    yield tensor[start : min(start + BLOCK, part.n)]
        except SafetensorError as error:
            raise IntegrityError(f"{path} does not hold {name}: {error}") from error

    def beside(self, file: str) -> dict[str, npt.NDArray[Any]]:
        """The tensors of buffers.safetensors or frozen.safetensors; empty where there is none."""
        path = self.files / file
        if not path.is_file():
            return {}
        with safe_open(path, "numpy") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def open_step(path: Path) -> Step:
    """Check every file of a step folder and find its parameters. Raises IntegrityError."""
    manifest = verify_step(path)
    return Step(path, manifest, read_index(path / str(manifest["folder"]), manifest))


def consolidate(step: Step, out: Path, weights: Weights) -> Written:
    """Write the averaged (`ema`) or the trained (`raw`) weights into the file `out`, atomically."""
    about = step.manifest["model"]
    prefix = str(about["prefix"])
    found = {name: _parameter(step, w, FIELDS[weights]) for name, w in step.index.items()}
    for file in (BUFFERS, FROZEN):
        found |= {name: _array(name, array) for name, array in step.beside(file).items()}
    found = step.with_aliases(found)
    sources = [
        replace(source, name=name.removeprefix(prefix))
        for name, source in found.items()
        if name.startswith(prefix)
    ]
    codebook = about["codebook"]
    metadata = {layout.CODEBOOK: json.dumps(codebook, sort_keys=True)} if codebook else {}
    with atomic_path(out) as temporary:
        return write_tensors(temporary, sources, metadata)


def _parameter(step: Step, whole: Whole, field: str) -> TensorSource:
    def chunks() -> Iterator[memoryview]:
        for block in step.blocks(whole, field):
            yield np.ascontiguousarray(block).view(np.uint8).data

    return TensorSource(whole.name, "F32", whole.shape, chunks)


TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def _array(name: str, array: npt.NDArray[Any]) -> TensorSource:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return TensorSource(name, TYPES[array.dtype.name], array.shape, lambda: [data.data])
