"""Which differing ids are ties: the reference itself would have chosen the other id, had its
features been a little different.

A search takes the code c with the largest s = <x, c> + const. A change d of the features x moves
the lead of a over b by <d, a - b>, at most |d| |a - b|. So the other id needs a relative change of
at least (s_a - s_b) / (|a - b| |x|), however it came about. The reference stores that number for
the few codes nearest to being chosen; a differing id that is not among them is never a tie, and no
id is where nothing is stored. Samplers draw ids; their ties are not known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array, Rivals
from mmprod.parity.compare import CHANGE, TIES, Stats

UNKNOWN = 1.0


def needed_changes(reference: Array, candidate: Array, rivals: Rivals) -> npt.NDArray[np.float64]:
    """ids (B, N) each -> (B, N): 0 where they are equal, else the relative change of the features
    that explains the difference, UNKNOWN (and never above) where none is known.
    """
    same = rivals.ids == candidate[..., None]
    changes = np.where(same, rivals.changes.astype(np.float64), UNKNOWN).min(axis=-1)
    needed: npt.NDArray[np.float64] = np.where(reference == candidate, 0.0, changes)
    return np.minimum(needed, UNKNOWN)


def settle(stats: Stats, reference: Array, candidate: Array, rivals: Rivals, tie: float) -> Stats:
    """Measurements of ids with the differences that need a change of at most `tie` counted."""
    needed = needed_changes(reference, candidate, rivals)
    ties = (reference != candidate) & (needed <= tie)
    return replace(
        stats,
        sums={**stats.sums, TIES: float(ties.sum())},
        peaks={**stats.peaks, CHANGE: float(needed.max())},
    )
