"""What partitions cost and gain, measured on the index itself."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import product

from mmprod.search.items import Hit, Kind
from mmprod.search.rows import VECTOR
from mmprod.search.table import Table

K = 10
EQUAL = 1e-6
"""cosines that differ by less are equal: which of equal items is found does not matter"""


@dataclass(frozen=True)
class Comparison:
    """A search of partitions beside one of everything, for `want` by stored items of kind `by`,
    which are themselves left out. recall: share of the first K of the latter, or of what is equally
    near, that the former finds too; times are medians in ms.
    """

    by: Kind
    want: Kind
    queries: int
    k: int
    recall: float
    exact_ms: float
    partitioned_ms: float


def compare_partitions(table: Table, count: int) -> list[Comparison]:
    """Search by `count` stored items of each kind, drawn at random, for each kind that is in
    partitions, both ways in turn. Text to picture is the harder direction: texts lie far from
    all pictures.
    """
    return [
        _compare(table, by, want, count)
        for by, want in product(VECTOR, VECTOR)
        if table.partitioned(want) and table.sample(by, 1)
    ]


def _compare(table: Table, by: Kind, want: Kind, count: int) -> Comparison:
    hits, wanted = 0, 0
    times: dict[bool, list[float]] = {True: [], False: []}
    queries = table.sample(by, count)
    for name, text, vector in queries:
        found: dict[bool, list[Hit]] = {}
        for exact, spent in times.items():
            start = time.perf_counter()
            nearest = table.nearest(vector, K + 1, want, exact=exact)
            spent.append((time.perf_counter() - start) * 1000)
            own = by, name, text
            found[exact] = [hit for hit in nearest if (hit.kind, hit.name, hit.text) != own][:K]
        best = found[True]
        hits += sum(hit.score >= best[-1].score - EQUAL for hit in found[False])
        wanted += len(best)
    exact_ms, partitioned_ms = (statistics.median(times[way]) for way in (True, False))
    return Comparison(by, want, len(queries), K, hits / wanted, exact_ms, partitioned_ms)
