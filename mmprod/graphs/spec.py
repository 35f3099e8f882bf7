"""Data that describes a deployable graph. Torch-free; everything that must agree on shapes derives
from it.

ONNX dynamic shapes, TensorRT profiles, server limits and parity cases are read from these records
and written nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DType = Literal["uint8", "int32", "float32"]
Role = Literal["pixels", "codes", "tokens", "logits", "embedding", "noise", "mask"]
Shape = tuple["int | Dim", ...]


@dataclass(frozen=True)
class Dim:
    """A dimension that may vary at run time: smallest, typical and largest size."""

    name: str
    min: int
    typical: int
    max: int


@dataclass(frozen=True)
class Tensor:
    """One input or output. `role` chooses how values are drawn for tests and how outputs are
    compared.

    `below`: for integer inputs, values lie in [0, below).
    """

    name: str
    dtype: DType
    shape: Shape
    role: Role
    below: int = 0

    def sizes(self, batch: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for given dimension sizes, e.g. `{"batch": 3}`."""
        return tuple(batch[d.name] if isinstance(d, Dim) else d for d in self.shape)

    def sizes_at(self, which: Literal["min", "typical", "max"]) -> tuple[int, ...]:
        """The concrete shape at one end of the range of every dimension."""
        return tuple(getattr(d, which) if isinstance(d, Dim) else d for d in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """A deployable function: name, inputs, outputs, one line about it, and the kind that decides
    how it is built.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    summary: str
    loop_steps: int = 0
    """0: one plain graph. T > 0: prologue, a Loop of T steps, epilogue (see graphs/modules.py)."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The distinct variable dimensions, in order of appearance."""
        found = {
            d.name: d for t in (*self.inputs, *self.outputs) for d in t.shape if isinstance(d, Dim)
        }
        return tuple(found.values())

    def input(self, name: str) -> Tensor:
        return next(t for t in self.inputs if t.name == name)

    def output(self, name: str) -> Tensor:
        return next(t for t in self.outputs if t.name == name)
