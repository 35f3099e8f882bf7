"""One function over many items on all processors, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

_CHUNK = 64

T = TypeVar("T")
R = TypeVar("R")


def map_processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`function` of each item, in order. `workers`: processes, 0 means one per usable processor.

    One worker, or few items, need no second process. `function` and the items must be picklable.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    # spawn, not fork: the caller may run threads (torch does), and a forked child would inherit
    # their locks.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)
