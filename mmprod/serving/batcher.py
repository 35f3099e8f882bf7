"""Requests of one graph, run together.

    submit(inputs) -> queue -> [batch of up to Dim.max rows] -> runner -> rows back to each request

One thread takes the oldest request, waits up to `wait_s` for more that fit, and runs them as one
batch. While it runs, others queue up, so batches form under load even with no wait at all. The
queue is bounded; who is cancelled while waiting leaves it at once. Inputs are checked before they
queue, so that one request cannot spoil the batch of others; a batch that fails all the same is run
again one by one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.runners.checks import check_inputs
from mmprod.serving.refusal import busy, unavailable
from mmprod.serving.settings import Batching

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """Outputs of one request, and what it cost: seconds in the queue and in the runner."""

    outputs: dict[str, Array]
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Batch:
    """What a batch was, for the metrics."""

    rows: int
    queue_s: tuple[float, ...]
    compute_s: float


@dataclass(eq=False)
class _Waiting:
    inputs: dict[str, Array]
    rows: int
    future: Future[Done] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue and the thread of one runner. `observe` is told of every batch that ran."""

    def __init__(
        self, runner: Runner, batching: Batching, observe: Callable[[Batch], None]
    ) -> None:
        self.runner = runner
        self._dim = runner.spec.dims[0]
        self._most_rows = self._dim.max if batching.together else 1
        self._wait_s, self._limit = batching.wait_of(runner.spec.name), batching.queue
        self._observe = observe
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._last_s = 0.0
        self._thread = threading.Thread(target=self._run, name=runner.spec.name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, inputs: Arrays) -> Future[Done]:
        """Queue one request of 1 to Dim.max rows. Raises ConfigError for inputs that are not those
        of the graph, Refused when the queue is full or the batcher closed.
        """
        rows = check_inputs(self.runner.spec, inputs, up_to_max=True)[self._dim.name]
        work = _Waiting(dict(inputs), rows)
        with self._changed:
            if self._closed:
                raise unavailable("this version of the bundle was replaced or the server stops")
            if len(self._queue) >= self._limit:
                ahead_s = self._last_s * len(self._queue)
                raise busy(f"{len(self._queue)} requests wait already", max(1, round(ahead_s)))
            self._queue.append(work)
            self._changed.notify()
        work.future.add_done_callback(lambda future: self._forget(work))
        return work.future

    def close(self) -> None:
        """Answer what waits, then free the runner. Calling it twice is allowed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self.runner.close()

    def _forget(self, work: _Waiting) -> None:
        """Free the place and the memory of a request that was cancelled while it waited."""
        if work.future.cancelled():
            with self._changed, suppress(ValueError):
                self._queue.remove(work)

    def _run(self) -> None:
        while batch := self._take():
            self._answer(batch)

    def _take(self) -> list[_Waiting]:
        """The next batch; empty once closed and drained."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                self._wait_for_company()
                if batch := self._fitting():
                    return batch

    def _wait_for_company(self) -> None:
        deadline = self._queue[0].since + self._wait_s
        while 0 < sum(work.rows for work in self._queue) < self._most_rows and not self._closed:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _fitting(self) -> list[_Waiting]:
        """The oldest request and those behind it that fit into a batch with it; empty when all were
        cancelled.
        """
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].rows <= self._most_rows):
            work = self._queue.popleft()
            if work.future.set_running_or_notify_cancel():
                batch.append(work)
                rows += work.rows
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        start = time.monotonic()
        try:
            outputs = self.runner(_joined([work.inputs for work in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.exception("a batch of %s failed; its requests run alone", self.runner.spec.name)
            for work in batch:
                self._answer([work])
            return
        self._last_s = time.monotonic() - start
        waits = tuple(start - work.since for work in batch)
        first = 0
        for work, queue_s in zip(batch, waits, strict=True):
            own = {name: value[first : first + work.rows] for name, value in outputs.items()}
            first += work.rows
            work.future.set_result(Done(own, queue_s, self._last_s))
        self._observe(Batch(first, waits, self._last_s))


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
