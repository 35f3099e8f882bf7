"""Which places a sampler fills in at which step, and the constants of a draw; without torch, for
whatever follows a sampler on the host.
"""

from __future__ import annotations

import math

CERTAIN = 0.95
"""a text's place whose likeliest token has this probability is filled in at once"""
BELOW_ONE = 1 - 2.0**-20
"""keeps u * total strictly below the last value of the cumulative sum in float32"""


def radical_inverse(index: int, base: int) -> float:
    """The van der Corput number of `index` in `base`, in [0, 1)."""
    value, scale = 0.0, 1.0
    while index:
        scale /= base
        index, digit = divmod(index, base)
        value += digit * scale
    return value


def halton_ranks(grid: int, planes: int = 1) -> list[int]:
    """Rank (0 = first) of every cell of a grid x grid picture, row-major, in the order of a 2D
    Halton sequence (bases 2, 3); plane after plane.
    """
    ranks: dict[int, int] = {}
    index = 1
    while len(ranks) < grid * grid:
        cell = int(radical_inverse(index, 2) * grid) * grid + int(radical_inverse(index, 3) * grid)
        ranks.setdefault(cell, len(ranks))
        index += 1
    cells = grid * grid
    return [plane * cells + ranks[cell] for plane in range(planes) for cell in range(cells)]


def image_bounds(positions: int, steps: int) -> list[int]:
    """Places known after step 0..T, by the arccos schedule: few at first, many at the end; at least
    one per step.
    """
    bounds = [round(positions * (1 - math.acos(t / steps) * 2 / math.pi)) for t in range(steps + 1)]
    for t in range(1, steps + 1):
        bounds[t] = min(max(bounds[t], bounds[t - 1] + 1), positions - (steps - t))
    return bounds


def text_shares(steps: int) -> list[tuple[int, int]]:
    """Which share of the uncertain places, those on the left, a text fills in at step 0..T-1, as
    (numerator, denominator): few at first, ever more, all at the last. Were no place certain, a
    share (t/T)^2 of all would be known after t steps.
    """
    return [(2 * t + 1, steps**2 - t**2) for t in range(steps)]
