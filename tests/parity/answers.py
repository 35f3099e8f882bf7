"""What the small graphs of toy.py answer, in NumPy. Light enough for a worker process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec

_RNG = np.random.Generator(np.random.Philox(key=[7, 7]))
CODEBOOK = _RNG.normal(size=(24, 6)).astype(np.float32)
TO_PIXELS = _RNG.normal(size=(6, 12)).astype(np.float32)
TOKENS = _RNG.normal(size=(20, 6)).astype(np.float32)
TO_VECTOR = _RNG.normal(size=(6, 5)).astype(np.float32)

Function = Callable[[Mapping[str, Array]], dict[str, Array]]


def decode(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """codes (B, 4) -> pixels (B, 4, 4, 3): each code is a patch of 2 x 2 colours."""
    values = 127.5 + 40 * (CODEBOOK[inputs["codes"]] @ TO_PIXELS)
    pixels = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return {"pixels": pixels.reshape(-1, 4, 4, 3)}


def embed(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """tokens (B, 3) -> embedding (B, 5) of length 1."""
    vector = TOKENS[inputs["tokens"]].mean(axis=1) @ TO_VECTOR
    norm = np.sqrt(np.square(vector).sum(axis=1, keepdims=True))
    return {"embedding": (vector / norm).astype(np.float32)}


REFERENCES: dict[str, Function] = {"codec_decode": decode, "embed_text": embed}


class FakeRunner:
    """A Runner made of a NumPy function; counts its calls and closes."""

    def __init__(self, spec: GraphSpec, function: Function, backend: str = "numpy") -> None:
        self.spec = spec
        self.backend = backend
        self.function = function
        self.calls = 0
        self.closed = 0

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        return self.function(inputs)

    def close(self) -> None:
        self.closed += 1
