"""Pictures of any size through graphs of one fixed size: windows over a grid of cells.

A picture of H x W pixels has ceil(H / f) x ceil(W / f) cells, f pixels a side; every cell is coded
once. The graphs see windows of g x g cells. *Encoding*: windows lie over the picture, the first at
its start, the last at its end, evenly between; a cell takes its code from the window in which it
lies most centrally, where the encoder sees the most around it. *Decoding*: windows of codes overlap
and are cross-faded over the whole overlap, because a decoder knows little at its borders and its
normalisation sees one window at a time: a hard cut would be seen, a fade is not.

A picture of the graph's own size is one window: exactly `codec_encode` and `codec_decode`. A
smaller one is extended by its last pixels (encoding) and last codes (decoding) to one window.

What the file holds does not depend on how windows are laid here: another reader may decode the same
cells in another way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmprod.config.schema import Dims
from mmprod.graphs.runner import Runner

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]

OVERLAP = 0.25
"""Smallest overlap of neighbouring windows, as a share of their cells.

Measured on 16 crops of four photographs, 64 px windows, factor 8. Seams: gradient energy across the
borders of windows over that across other borders of cells, over the same of the photograph.

    overlap   seams           PSNR    time
    0         2.24 +- 0.15    21.37   0.75
    1/4       1.05 +- 0.04    21.72   1
    1/2       0.91 +- 0.05    21.71   2.2

Encoding: 1/4 gains 0.1 to 0.3 dB over none, and more gains nothing.
"""


@dataclass(frozen=True)
class Geometry:
    """Sizes of the graphs: S pixels and g cells a side, codes of `planes` books per cell."""

    size: int
    grid: int
    planes: int

    @classmethod
    def of(cls, dims: Dims) -> Geometry:
        return cls(dims.image_size, dims.grid, dims.planes)

    @property
    def factor(self) -> int:
        """f: pixels a side of a cell."""
        return self.size // self.grid

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Cells of a picture of `height` x `width` pixels."""
        return -(-height // self.factor), -(-width // self.factor)


def encode(runner: Runner, pixels: Pixels, geometry: Geometry, overlap: float = OVERLAP) -> Codes:
    """pixels (H, W, 3) uint8 -> codes (planes * h * w,) int32 by the graph `codec_encode`.

    Plane after plane, row-major over the h x w cells inside a plane. `overlap`: in [0, 1).
    """
    g, f = geometry.grid, geometry.factor
    height, width = pixels.shape[:2]
    cells = geometry.cells(height, width)
    tops, lefts = (window_starts(n, g, overlap) for n in cells)
    owned = [_owned(tops, g, cells[0]), _owned(lefts, g, cells[1])]
    codes = np.empty((geometry.planes, *cells), np.int32)
    for batch in _batches(len(tops), len(lefts), runner.spec.dims[0].max):
        windows = np.stack(
            [_window(pixels, tops[i] * f, lefts[j] * f, geometry.size) for i, j in batch]
        )
        found = runner({"pixels": windows})["codes"].reshape(-1, geometry.planes, g, g)
        for window, (i, j) in zip(found, batch, strict=True):
            (top, bottom), (left, right) = owned[0][i], owned[1][j]
            inside = window[:, top - tops[i] : bottom - tops[i], left - lefts[j] : right - lefts[j]]
            codes[:, top:bottom, left:right] = inside
    return codes.reshape(-1)


def decode(
    runner: Runner,
    codes: Codes,
    shape: tuple[int, int],
    geometry: Geometry,
    overlap: float = OVERLAP,
) -> Pixels:
    """codes (planes * h * w,) int32 of a picture of `shape` (H, W) -> pixels (H, W, 3) uint8.

    By the graph `codec_decode`. Beside the result it holds one strip of windows, S x W x 3 float32.
    """
    f, size = geometry.factor, geometry.size
    cells = geometry.cells(*shape)
    plan = codes.reshape(geometry.planes, *cells)
    tops, lefts = (window_starts(n, geometry.grid, overlap) for n in cells)
    fade_y, fade_x = _fades(tops, geometry), _fades(lefts, geometry)
    picture = np.empty((*shape, 3), np.uint8)
    strip = np.zeros((size, (lefts[-1] + geometry.grid) * f, 3), np.float32)
    ends = [top * f for top in tops[1:]] + [shape[0]]
    for i, (top, end) in enumerate(zip(tops, ends, strict=True)):
        for batch in _batches(1, len(lefts), runner.spec.dims[0].max):
            windows = np.stack([_code_window(plan, top, lefts[j], geometry.grid) for _, j in batch])
            drawn = runner({"codes": windows})["pixels"]
            for window, (_, j) in zip(drawn, batch, strict=True):
                weights = (fade_y[i][:, None] * fade_x[j])[..., None]
                strip[:, lefts[j] * f : lefts[j] * f + size] += weights * window
        done = end - top * f
        picture[top * f : end] = np.rint(strip[:done, : shape[1]]).clip(0, 255)
        strip[: size - done] = strip[done:]
        strip[size - done :] = 0
    return picture


def window_starts(cells: int, grid: int, overlap: float) -> tuple[int, ...]:
    """First cells of the windows along one axis, evenly spaced, neighbours sharing at least
    `overlap` of their cells; one window where it is enough.
    """
    if cells <= grid:
        return (0,)
    stride = max(1, int(grid * (1 - overlap)))
    count = -(-(cells - grid) // stride)
    return tuple(k * (cells - grid) // count for k in range(count + 1))


def _owned(starts: tuple[int, ...], grid: int, cells: int) -> list[tuple[int, int]]:
    """The half-open range of cells that each window codes: neighbours part in mid-overlap."""
    cuts = [(a + grid + b + 1) // 2 for a, b in itertools.pairwise(starts)]
    return list(zip([0, *cuts], [*cuts, cells], strict=True))


def _fades(starts: tuple[int, ...], geometry: Geometry) -> list[npt.NDArray[np.float32]]:
    """Weights (S,) of each window along one axis, which add up to 1 at every pixel."""
    f, size = geometry.factor, geometry.size
    at = (np.arange(size) + 0.5).astype(np.float64)
    raw = [np.ones(size) for _ in starts]
    for k, (a, b) in enumerate(itertools.pairwise(starts)):
        shared = (a + geometry.grid - b) * f
        rise = _smooth(at / shared) if shared else np.ones(size)
        raw[k + 1] *= rise
        raw[k] *= rise[::-1]
    total = np.zeros(starts[-1] * f + size)
    for start, weights in zip(starts, raw, strict=True):
        total[start * f : start * f + size] += weights
    return [
        (weights / total[start * f : start * f + size]).astype(np.float32)
        for start, weights in zip(starts, raw, strict=True)
    ]


def _smooth(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 at 0 to 1 at 1 without a corner at either end."""
    t = x.clip(0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _batches(rows: int, columns: int, largest: int) -> Iterator[list[tuple[int, int]]]:
    """All (row, column), row-major, in lists of at most `largest`."""
    places = [(i, j) for i in range(rows) for j in range(columns)]
    return (places[start : start + largest] for start in range(0, len(places), largest))


def _window(pixels: Pixels, top: int, left: int, size: int) -> Pixels:
    """A square of the picture; beyond its end the last row and column go on."""
    rows = np.arange(top, top + size).clip(max=pixels.shape[0] - 1)
    columns = np.arange(left, left + size).clip(max=pixels.shape[1] - 1)
    return np.asarray(pixels[rows[:, None], columns])


def _code_window(plan: Codes, top: int, left: int, grid: int) -> Codes:
    """A square of codes (planes, h, w) -> (planes * g * g,), extended as `_window` does."""
    rows = np.arange(top, top + grid).clip(max=plan.shape[1] - 1)
    columns = np.arange(left, left + grid).clip(max=plan.shape[2] - 1)
    return np.asarray(plan[:, rows[:, None], columns]).reshape(-1)
