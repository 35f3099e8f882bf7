"""Pictures and captions to unit vectors, by the towers alone: the graphs codec_encode, embed_image
and embed_text over any Runner.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmprod.config.schema import Dims
from mmprod.errors import NumericsError
from mmprod.graphs.runner import Runner
from mmprod.sampling import Tokens, run_batched
from mmprod.search.items import Ids, Pixels, Vector

GRAPHS = ("codec_encode", "embed_image", "embed_text")
LENGTH_OFF = 1e-2
"""how far from 1 a vector's length may be; fp16 stays below 1e-3"""


@dataclass(frozen=True)
class Embedded:
    """Pictures as codes (B, N) and vectors (B, E)."""

    codes: Ids
    vectors: Vector


class Embedder:
    """The two towers of one model. `runners`: by the names of GRAPHS. Safe for several threads,
    which take turns: not every runner may be called twice at a time.
    """

    def __init__(self, runners: dict[str, Runner], tokenizer: Tokens, dims: Dims) -> None:
        self.dims = dims
        self._runners = runners
        self._tokenizer = tokenizer
        self._turn = threading.Lock()

    @property
    def backend(self) -> str:
        """What executes the graphs, as the runner says."""
        return self._runners["embed_image"].backend

    def pictures(self, pixels: Pixels) -> Embedded:
        """pixels (B, H, W, 3) uint8 -> their codes and vectors. Raises NumericsError."""
        with self._turn:
            codes = run_batched(self._runners["codec_encode"], "pixels", pixels)["codes"]
            vectors = run_batched(self._runners["embed_image"], "codes", codes)["embedding"]
        return Embedded(codes.astype(np.int32, copy=False), _units(vectors))

    def texts(self, texts: Sequence[str]) -> Vector:
        """texts -> vectors (B, E); equal texts are embedded once. Raises NumericsError."""
        distinct, places = np.unique(np.array(texts, object), return_inverse=True)
        with self._turn:
            tokens = self._tokenizer.encode(list(distinct), self.dims.text_length)
            vectors = run_batched(self._runners["embed_text"], "tokens", tokens)["embedding"]
        return _units(vectors)[places]

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def _units(vectors: Vector) -> Vector:
    """The vectors (B, E) float32, checked to be of length 1."""
    found = vectors.astype(np.float32, copy=False)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) <= LENGTH_OFF).all():  # NaN is not near 1 either
        raise NumericsError(
            "a search embedding is NaN or no unit vector",
            hint="mmprod parity run BUNDLE finds the graph",
        )
    return found
