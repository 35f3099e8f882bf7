"""Towers that need no training, for tests and tools of the search: a picture's vector is its mean
colours, a text's vector is that of the colour it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.runner import Array, Arrays
from mmprod.search import About, Embedder

DIMS = Dims(
    image_size=16, grid=2, codebook_size=256, planes=3, vocabulary=40, text_length=3, embedding=8
)
"""a code is the mean of a channel over a quarter of the picture"""
NAMES = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
ABOUT = About({"weights": "0" * 64}, "fp32", DIMS.embedding, DIMS.positions, "/nowhere")


class Toy:
    """A Runner of one graph."""

    backend = "toy"

    def __init__(self, name: str, compute: Callable[[Array], Array]) -> None:
        self.spec = build_catalog(DIMS, SamplerConfig())[name]
        self._compute = compute

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        (value,) = inputs.values()
        return {self.spec.outputs[0].name: self._compute(value)}

    def close(self) -> None: ...


class Words:
    """A tokenizer: the colour that a text names, by number, and the text's length."""

    def encode(self, texts: list[str], length: int) -> npt.NDArray[np.int32]:
        rows = [
            (next((i for i, name in enumerate(NAMES, 1) if name in text), 0), len(text) % 30)
            for text in texts
        ]
        return np.array([(*row, 0) for row in rows], np.int32)

    def decode(self, ids: npt.NDArray[np.int32]) -> list[str]:
        return [" ".join(map(str, row)) for row in ids]


def toy_embedder() -> Embedder:
    """The towers as an Embedder."""
    runners = {
        "codec_encode": Toy("codec_encode", _codes),
        "embed_image": Toy("embed_image", _of_codes),
        "embed_text": Toy("embed_text", _of_tokens),
    }
    return Embedder(dict(runners), Words(), DIMS)


def write_pictures(folder: Path, names: Sequence[str], *, seed: int = 0) -> None:
    """Small PNG files of noise around a colour, whose captions name it."""
    rng = np.random.default_rng(seed)
    for name in names:
        colour = list(NAMES)[int(rng.integers(len(NAMES)))]
        pixels = 0.6 * np.array(NAMES[colour]) + 0.4 * rng.integers(0, 256, (16, 16, 3))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"mostly {colour}\n", encoding="utf-8")


def _codes(pixels: Array) -> Array:
    side, grid = DIMS.image_size // DIMS.grid, DIMS.grid
    cells = pixels.reshape(-1, grid, side, grid, side, 3).mean((2, 4))
    return cells.transpose(0, 3, 1, 2).reshape(len(pixels), -1).astype(np.int32)


def _of_codes(codes: Array) -> Array:
    colours = codes.reshape(len(codes), 3, -1)
    return _unit(np.concatenate([colours.mean(2), colours.std(2), colours[:, :2, 0]], 1))


def _of_tokens(tokens: Array) -> Array:
    colours = np.array([(128, 128, 128), *NAMES.values()])[tokens[:, 0]]
    return _unit(np.concatenate([colours, 0 * colours, colours[:, :2]], 1))


def _unit(rows: Array) -> Array:
    shifted = rows + 1.0
    return (shifted / np.linalg.norm(shifted, axis=1, keepdims=True)).astype(np.float32)
