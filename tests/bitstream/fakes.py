"""A tiny codec and a prior made of NumPy alone: quick, and the same on every machine."""

from __future__ import annotations

import numpy as np

from mmprod.bitstream import CodecId, FusionPrior, Picture, Prior, RawPrior, StaticPrior
from mmprod.bitstream.tables import Frequencies, static_table
from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

FACTOR, GRID = 4, 4
PRIORS = ("raw", "static", "fusion")


def codec_id(book: int = 12, planes: int = 1, fill: str = "a") -> CodecId:
    return CodecId(fill * 64, book * planes, planes, FACTOR)


class FakePrior:
    """A runner of `code_prior`: near each known code its own id and its neighbours are likelier."""

    def __init__(self, codec: CodecId, backend: str = "numpy", noise: float = 0.0) -> None:
        batch, k = Dim("batch", 1, 4, 16), codec.codebook_size
        self.n = codec.planes * GRID**2
        codes = Tensor("codes", "int32", (batch, self.n), "codes", below=k + 1)
        logits = Tensor("logits", "float32", (batch, self.n, k), "logits")
        self.spec = GraphSpec("code_prior", (codes,), (logits,), "fake")
        self.backend, self.noise, self.calls = backend, noise, 0
        self._ids = np.arange(k, dtype=np.int64)
        self._k = k

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self.calls += 1
        codes = inputs["codes"].astype(np.int64)
        assert codes.shape[1] == self.n and codes.min() >= 0 and codes.max() <= self._k
        known = codes < self._k
        mean = np.where(known, codes, 0).sum(1) // np.maximum(known.sum(1), 1)
        far = np.abs(self._ids - mean[:, None])[:, None, :] * known.any(1)[:, None, None]
        place = (np.arange(self.n)[:, None] * 7 + self._ids * 3) % 5
        logits = -0.25 * far.astype(np.float32) - 0.5 * place[None].astype(np.float32)
        return {"logits": logits + np.float32(self.noise)}

    def close(self) -> None:
        pass


def table_of(codec: CodecId) -> Frequencies:
    rate = 1 / (1 + np.arange(codec.codebook_size, dtype=np.float32) % codec.book)
    return static_table(rate.astype(np.float32), codec.planes)


def prior_of(name: str, codec: CodecId) -> Prior:
    if name == "raw":
        return RawPrior(codec)
    if name == "static":
        return StaticPrior(codec, table_of(codec))
    return FusionPrior(codec, FakePrior(codec))


def picture(codec: CodecId, height: int, width: int, seed: int = 0, name: str = "") -> Picture:
    """Codes that lie around a middle which moves from place to place."""
    rng = np.random.default_rng([seed, height, width])
    planes, rows, columns = codec.shape(height, width)
    middle = rng.integers(0, codec.book, (planes, 1))
    drift = rng.integers(-2, 3, (planes, rows * columns))
    symbols = (middle + drift) % codec.book + np.arange(planes)[:, None] * codec.book
    return Picture(symbols.ravel().astype(np.int32), height, width, name)


def same(a: Picture, b: Picture) -> bool:
    return (
        (a.height, a.width, a.name) == (b.height, b.width, b.name)
        and a.codes.dtype == b.codes.dtype
        and np.array_equal(a.codes, b.codes)
    )
