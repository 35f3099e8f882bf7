"""The batches of one rank, made ahead of the step that needs them.

One thread, so they come in order; each is a pure function of the step and the place in the global
batch (shares.py), so nothing of it is state: a resumed run starts at its step and gets the same.
An error of the thread is raised where its batch is taken.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor

from mmprod.training.shares import Share, Shares
from mmprod.training.task import Task

AHEAD = 2
"""micro-batches that wait ready, at most"""


@dataclass(frozen=True)
class Loaded:
    """A share of a global batch and its tensors."""

    share: Share
    batch: tuple[Tensor, ...]


class Loader:
    """Micro-batches of the steps [first, last), in order. Leave it when training ends."""

    def __init__(self, task: Task, shares: Shares, first: int, last: int) -> None:
        self._task, self._shares = task, shares
        self._todo = _places(first, last, shares.accumulation)
        self._parts: tuple[int, list[Share]] = (-1, [])
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ready: deque[tuple[int, Future[Loaded]]] = deque()
        self._waited = 0.0

    def step(self, step: int) -> Iterator[Loaded]:
        """The micro-batches of `step`, one after another. Steps are taken in order, each once."""
        for _ in range(self._shares.accumulation):
            self._fill()
            started = time.perf_counter()
            planned, future = self._ready.popleft()
            if planned != step:
                raise ValueError(f"step {step} was asked for, the next one is {planned}")
            loaded = future.result()
            self._waited += time.perf_counter() - started
            self._fill()
            yield loaded

    def waited(self) -> float:
        """Seconds that `step` waited for data since this was last asked."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def _fill(self) -> None:
        while len(self._ready) < AHEAD and (place := next(self._todo, None)) is not None:
            self._ready.append((place[0], self._pool.submit(self._load, *place)))

    def _load(self, step: int, part: int) -> Loaded:
        """Runs in the thread."""
        if self._parts[0] != step:
            self._parts = step, self._shares.of(step, self._task.size, self._task.weights)
        share = self._parts[1][part]
        return Loaded(share, self._task.batch(share))

    def __enter__(self) -> Loader:
        self._fill()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _places(first: int, last: int, parts: int) -> Iterator[tuple[int, int]]:
    return ((step, part) for step in range(first, last) for part in range(parts))
