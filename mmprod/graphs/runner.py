"""What executes a graph. One narrow seam: PyTorch, ONNX Runtime and TensorRT sit behind the same
two methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mmprod.graphs.spec import GraphSpec

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class Runner(Protocol):
    """Runs one graph on NumPy arrays. `backend` says what really executes it, read back, never
    assumed.
    """

    spec: GraphSpec
    backend: str

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name. Inputs must have exactly the names, dtypes and shapes of `spec`."""

    def close(self) -> None:
        """Free the session or engine. Calling it twice is allowed."""


@dataclass(frozen=True)
class Rivals:
    """What a search nearly chose, nearest first. ids (B, N, R) int32; changes (B, N, R) float32:
    the smallest relative change of the features (their L2 length is 1) after which that id is
    chosen.
    """

    ids: Array
    changes: Array


@runtime_checkable
class Ranked(Protocol):
    """A runner that also knows how near its choices were."""

    def rivals(self, inputs: Arrays) -> dict[str, Rivals]:
        """By output; none for outputs of which nothing is known."""


def example_inputs(spec: GraphSpec, batch: int, seed: int) -> dict[str, Array]:
    """Inputs for tests and parity: a pure function of (spec, batch, seed), the same on every
    machine.

    Pixels and ids are uniform over their range, noise is uniform in [0, 1) on the float32 grid.
    """
    out: dict[str, Array] = {}
    for index, tensor in enumerate(spec.inputs):
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        shape = tensor.sizes({d.name: batch for d in spec.dims})
        if tensor.dtype == "float32":
            out[tensor.name] = rng.random(shape, dtype=np.float32)
        else:
            out[tensor.name] = rng.integers(0, tensor.below, shape).astype(tensor.dtype)
    return out
