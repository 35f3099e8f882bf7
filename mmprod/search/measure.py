"""What partitions cost and gain, measured on the index itself."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from mmprod.search.table import Table

K = 10


@dataclass(frozen=True)
class Comparison:
    """A search of partitions beside one of everything. recall: share of the first K of the latter
    that the former finds too; times are medians in ms.
    """

    queries: int
    k: int
    recall: float
    exact_ms: float
    partitioned_ms: float


def compare_partitions(table: Table, count: int) -> Comparison:
    """Search for `count` of the stored pictures both ways, in turn."""
    hits, wanted = 0, 0
    times: dict[bool, list[float]] = {True: [], False: []}
    vectors = table.sample(count)
    for vector in vectors:
        found = {}
        for exact, spent in times.items():
            start = time.perf_counter()
            found[exact] = {hit.name for hit in table.nearest(vector, K, "image", exact=exact)}
            spent.append((time.perf_counter() - start) * 1000)
        hits, wanted = hits + len(found[True] & found[False]), wanted + len(found[True])
    exact_ms, partitioned_ms = (statistics.median(times[way]) for way in (True, False))
    return Comparison(len(vectors), K, hits / wanted, exact_ms, partitioned_ms)
