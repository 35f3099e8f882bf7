"""Every place of a picture is coded once, in an order that both sides know."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.bitstream.blocks import GROUPS, blocks_of, count_blocks, group_bounds, halton_cells


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("size", [(4, 4), (1, 1), (3, 4), (4, 1), (9, 6), (13, 8), (8, 8)])
def test_blocks_cover_everything_once(planes: int, size: tuple[int, int]) -> None:
    grid, shapes = 4, [(planes, *size), (planes, 2, 5)]
    blocks = list(blocks_of(shapes, grid))
    assert len(blocks) == count_blocks(shapes, grid)
    targets = np.concatenate([block.target for block in blocks])
    assert sorted(targets) == list(range(planes * (size[0] * size[1] + 10)))
    cells = planes * grid * grid
    for block in blocks:
        assert len(block.canvas) == len(block.target) == block.bounds[-1]
        assert len(set(block.canvas.tolist())) == len(block.canvas) and block.canvas.max() < cells
        parts = [block.canvas[block.group(g)] for g in range(GROUPS)]
        assert np.array_equal(np.concatenate(parts), block.canvas)


def test_the_place_in_a_block_is_the_place_in_the_picture() -> None:
    planes, rows, columns, grid = 2, 5, 7, 4
    picture = np.arange(planes * rows * columns).reshape(planes, rows, columns)
    tops = [(0, 0), (0, 4), (4, 0), (4, 4)]
    for block, (top, left) in zip(blocks_of([picture.shape], grid), tops, strict=True):
        canvas = np.full((planes, grid, grid), -1)
        canvas.reshape(-1)[block.canvas] = block.target
        part = picture[:, top : top + grid, left : left + grid]
        assert np.array_equal(canvas[:, : part.shape[1], : part.shape[2]], part)
        assert (canvas >= 0).sum() == part.size


def test_planes_follow_each_other() -> None:
    (block,) = blocks_of([(3, 4, 4)], 4)
    assert (np.diff(block.canvas // 16) >= 0).all()


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 6, 8, 16])
def test_halton_order(grid: int) -> None:
    order = halton_cells(grid)
    assert sorted(order) == list(range(grid * grid))
    if grid >= 6:  # the first quarter leaves no quadrant out
        first = np.array(order[: grid * grid // 4])
        quadrants = (first // grid * 2 // grid) * 2 + first % grid * 2 // grid
        assert np.bincount(quadrants, minlength=4).min() >= 1


def test_the_order_of_the_format_does_not_move() -> None:
    assert halton_cells(4) == (9, 6, 12, 1, 11, 4, 14, 3, 8, 5, 0, 7, 13, 2, 15, 10)
    assert group_bounds(64) == (0, 1, 2, 4, 7, 11, 16, 21, 28, 36, 44, 53, 64)


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12, 13, 64, 256, 1000])
def test_groups_grow_and_none_is_empty(count: int) -> None:
    bounds = group_bounds(count)
    assert bounds[0] == 0 and bounds[-1] == count and len(bounds) == min(count, GROUPS) + 1
    sizes = np.diff(bounds)
    assert sizes.min() >= 1
    if count >= 64:
        assert sizes[0] <= count // 64 and sizes[-1] > 2 * count / GROUPS * 0.8
