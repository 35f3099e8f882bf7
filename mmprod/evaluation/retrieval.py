"""How often the right item is among the first that a search finds (torch-free)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.errors import NumericsError

DEPTHS = (1, 5, 10)


def recalls(
    queries: npt.NDArray[np.floating[Any]],
    items: npt.NDArray[np.floating[Any]],
    right: npt.NDArray[np.bool_],
    depths: Sequence[int] = DEPTHS,
) -> dict[str, float]:
    """Recall at each depth, "R@1", ...: the share of queries with a right item among so many first.

    queries (A, E) and items (B, E): unit vectors; right (A, B), at least one per query. Items are
    ranked by cosine; of equal ones the wrong are taken to come first, so a constant embedding
    scores as badly as it should. Raises NumericsError for an embedding that is not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise NumericsError(
            "a search embedding is NaN or infinite", hint="mmprod parity run BUNDLE finds the graph"
        )
    cosine = queries.astype(np.float64) @ items.astype(np.float64).T
    best = np.where(right, cosine, -np.inf).max(1, keepdims=True)
    before = ((cosine >= best) & ~right).sum(1)
    return {f"R@{depth}": float((before < depth).mean()) for depth in depths}


def chance_recall(right: npt.NDArray[np.bool_], depth: int = 1) -> float:
    """Recall of a search that guesses: the mean over queries of the chance that none of `depth`
    items drawn without replacement is wrong throughout.
    """
    items, good = right.shape[1], right.sum(1)
    missed = np.ones(len(right))
    for drawn in range(min(depth, items)):
        missed *= np.maximum(items - good - drawn, 0) / (items - drawn)
    return float(1 - missed.mean())
