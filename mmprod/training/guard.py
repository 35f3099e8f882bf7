"""Loss spikes: a batch whose loss is far above what the last batches had is not learned from.

Running median and median absolute deviation of the last `WINDOW` accepted losses, which a few
outliers do not move (a mean and its deviation they would). The loss is the mean over the global
batch, equal on all ranks, and what is remembered is part of the checkpoint: so all ranks, and a
resumed run, decide alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

WINDOW = 128
NEEDED = 32
"""accepted losses before anything is judged"""
FLOOR = 0.01
"""smallest deviation, as a share of the median: a steady loss is no reason to be strict"""
NORMAL = 1.4826
"""median absolute deviation -> standard deviation of a normal distribution"""
IN_ROW = 8
"""skipped batches in a row that are no accident any more"""


def is_spike(recent: Sequence[float], loss: float, factor: float) -> bool:
    """Whether `loss` lies more than `factor` robust deviations above the median of `recent`;
    factor 0: never.
    """
    if factor == 0 or len(recent) < NEEDED:
        return False
    middle = statistics.median(recent)
    spread = NORMAL * statistics.median(abs(value - middle) for value in recent)
    return loss > middle + factor * max(spread, FLOOR * abs(middle))


def remember(recent: list[float], loss: float) -> None:
    """Add an accepted loss; the oldest falls out."""
    recent.append(loss)
    del recent[:-WINDOW]
