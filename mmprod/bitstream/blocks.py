"""Where the fusion prior looks and in which order: blocks of a picture, groups of a block.

The prior knows squares of g x g cells. A picture is cut into such blocks, row by row from its top
left corner; blocks at the right and lower border may be partial: what lies outside stays masked and
costs nothing. Inside a block the places follow a Halton sequence (bases 2 and 3), which spreads any
first part of them evenly, plane after plane; they are cut into groups, few places at first when
little is known, more later. All places of a group are coded given all groups before it: as many
calls of the prior as groups, whatever the number of places.

This order is part of the format: the samplers' (models/unmask.py) may change, this one may not, so
it has its own definition here, in whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmprod.bitstream.priors import Shapes

Indices = npt.NDArray[np.int64]

GROUPS = 12
"""of a block at most"""


@dataclass(frozen=True)
class Block:
    """The places of a block in coding order: on the prior's canvas (planes * g * g), and in the
    codes of all pictures of the file. Group t are the places bounds[t] to bounds[t + 1].
    """

    canvas: Indices
    target: Indices
    bounds: tuple[int, ...]

    def group(self, index: int) -> slice:
        """The places of a group; none where this block has fewer groups."""
        if index + 1 >= len(self.bounds):
            return slice(0, 0)
        return slice(self.bounds[index], self.bounds[index + 1])


def count_blocks(shapes: Shapes, grid: int) -> int:
    return sum(-(-rows // grid) * -(-columns // grid) for _, rows, columns in shapes)


def blocks_of(shapes: Shapes, grid: int) -> Iterator[Block]:
    """All blocks of all pictures, one after the other."""
    start = 0
    for planes, rows, columns in shapes:
        for top in range(0, rows, grid):
            for left in range(0, columns, grid):
                order = _order(planes, grid, min(grid, rows - top), min(grid, columns - left))
                inside = (order.plane * rows + top + order.row) * columns + left + order.column
                yield Block(order.canvas, start + inside, order.bounds)
        start += planes * rows * columns


@dataclass(frozen=True)
class _Order:
    """Coding order of a block of some size."""

    plane: Indices
    row: Indices
    column: Indices
    canvas: Indices
    bounds: tuple[int, ...]


@lru_cache(maxsize=64)
def _order(planes: int, grid: int, rows: int, columns: int) -> _Order:
    cells = np.array(halton_cells(grid), np.int64)
    row, column = np.divmod(cells, grid)
    there = (row < rows) & (column < columns)
    count = int(there.sum())
    plane = np.repeat(np.arange(planes), count)
    row, column = np.tile(row[there], planes), np.tile(column[there], planes)
    canvas = (plane * grid + row) * grid + column
    return _Order(plane, row, column, canvas, group_bounds(planes * count))


@lru_cache(maxsize=8)
def halton_cells(grid: int) -> tuple[int, ...]:
    """The cells of a grid x grid square in the order in which the points (v_2(i), v_3(i)), i = 1,
    2, ... first fall into them; v_b(i): digits of i to the base b, mirrored at the point.
    """
    cells: dict[int, None] = {}
    index = 1
    while len(cells) < grid * grid:
        cells.setdefault(_scaled(index, 2, grid) * grid + _scaled(index, 3, grid))
        index += 1
    return tuple(cells)


def _scaled(index: int, base: int, grid: int) -> int:
    """floor(grid * v_base(index)), exactly."""
    value, unit = 0, 1
    while index:
        index, digit = divmod(index, base)
        value, unit = value * base + digit, unit * base
    return grid * value // unit


def group_bounds(count: int, groups: int = GROUPS) -> tuple[int, ...]:
    """Places known after 0..T groups: floor(count * (t / T)^2), at least one more each time, T the
    smaller of `groups` and `count`.
    """
    groups = min(groups, count)
    bounds = [0]
    for t in range(1, groups + 1):
        bounds.append(max(bounds[-1] + 1, count * t * t // groups**2))
    return tuple(bounds)
