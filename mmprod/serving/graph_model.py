"""A graph as it is served: its runner behind a batcher, as a model of its own, and as a `Runner`
for the friendly models.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace

from mmprod.graphs.runner import Array, Arrays
from mmprod.serving.batcher import Batcher, Done
from mmprod.serving.model import GRAPH_PREFIX, Answer, Parameters, Step, ports_of
from mmprod.serving.refusal import Refused

Repeat = Callable[[str, str, Arrays, Arrays], None]
"""Told of a graph, its precision, inputs and outputs that are to be repeated on the reference."""


class ServedGraph:
    """`step` tells which file answers. A share of what it computes goes to `repeat`."""

    def __init__(
        self, batcher: Batcher, step: Step, share: float = 0.0, repeat: Repeat | None = None
    ) -> None:
        self.batcher, self.step = batcher, step
        self.spec = batcher.runner.spec
        self._share, self._repeat = share, repeat

    def submit(self, inputs: Arrays) -> Future[Done]:
        return self.batcher.submit(inputs)

    def took(self, inputs: Arrays, done: Done) -> Step:
        """The step with its times; called once for every answer."""
        if self._repeat and random.random() < self._share:
            self._repeat(self.spec.name, self.step.precision, inputs, done.outputs)
        return replace(self.step, queue_ms=1e3 * done.queue_s, compute_ms=1e3 * done.compute_s)


class GraphModel:
    """`graph.NAME`: the tensors of the catalog in and out."""

    def __init__(self, graph: ServedGraph) -> None:
        self._graph = graph
        self.name = GRAPH_PREFIX + graph.spec.name
        self.summary = graph.spec.summary
        self.inputs, self.outputs = ports_of(graph.spec)
        self.steps: tuple[Step, ...] = (graph.step,)
        dim = graph.spec.dims[0]
        self.extra: Parameters = {"max_batch": dim.max}

    async def infer(self, inputs: Arrays) -> Answer:
        done = await asyncio.wrap_future(self._graph.submit(inputs))
        return Answer(done.outputs, (self._graph.took(inputs, done),))


@dataclass
class Call:
    """One request of a friendly model, on a thread of its own: what it ran, and whether anybody
    still waits for it.
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    steps: list[Step] = field(default_factory=list)

    def check(self) -> None:
        """Raises CancelledError once nobody waits any more."""
        if self.cancelled.is_set():
            raise CancelledError


class CallRunner:
    """A served graph as a `Runner` for one call: every use of it is noted there."""

    def __init__(self, graph: ServedGraph, call: Call) -> None:
        self._graph, self._call = graph, call
        self.spec = graph.spec
        self.backend = graph.step.runner

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self._call.check()
        try:
            done = self._graph.submit(inputs).result()
        except (Refused, CancelledError):
            raise
        except Exception as error:  # whatever type it has, it is not the client's fault
            raise RuntimeError(f"{self.spec.name} failed") from error
        self._call.steps.append(self._graph.took(inputs, done))
        return done.outputs

    def close(self) -> None:
        """The graph goes on being served."""
