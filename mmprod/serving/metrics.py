"""What is counted, for Prometheus. The only file that imports prometheus_client.

Labels take names of models, graphs and figures that exist, never what a client wrote.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from mmprod.serving.batcher import Batch

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        labels = ("model", "protocol")
        self.requests = Counter(
            "mmprod_requests", "Answers, by HTTP status.", (*labels, "status"), registry=registry
        )
        self.seconds = Histogram(
            "mmprod_request_seconds",
            "From the whole request to the answer.",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("mmprod_requests_running", "Requests at work.", registry=registry)
        self.waiting = Gauge(
            "mmprod_queue_requests", "Requests waiting, by graph.", ("graph",), registry=registry
        )
        self._queue_s, self._compute_s, self._rows = (
            Histogram(name, text, ("graph",), buckets=buckets, registry=registry)
            for name, text, buckets in (
                ("mmprod_queue_seconds", "A request in the queue of a graph.", _SECONDS),
                ("mmprod_compute_seconds", "A batch in its runner.", _SECONDS),
                ("mmprod_batch_rows", "Rows of a batch.", _ROWS),
            )
        )
        self.ready = Gauge("mmprod_ready", "1 while requests are taken.", registry=registry)
        self.bundle = Gauge(
            "mmprod_bundle", "1 for the bundle that is served.", ("name", "sha256"),
            registry=registry,
        )  # fmt: skip
        self.swaps = Counter(
            "mmprod_bundle_swaps", "Asked to take the bundle anew.", ("result",), registry=registry
        )
        self.shadow_checks = Counter(
            "mmprod_shadow_checks", "Requests repeated on the reference.", ("graph", "verdict"),
            registry=registry,
        )  # fmt: skip
        self.shadow_figure = Gauge(
            "mmprod_shadow_figure",
            "A figure of parity of the last request that was repeated.",
            ("graph", "output", "figure"),
            registry=registry,
        )
        self.shadow_used = Histogram(
            "mmprod_shadow_limit_used",
            "Share of its parity limit that a repeated request used; above 1 it is over.",
            ("graph",),
            buckets=(0.1, 0.25, 0.5, 0.75, 1, 2, 5),
            registry=registry,
        )
        self.shadow_dropped = Counter(
            "mmprod_shadow_dropped", "Not repeated: the reference was busy.", registry=registry
        )

    def observer(self, graph: str) -> Callable[[Batch], None]:
        """What a batcher tells of its batches."""
        queue_s, compute_s, rows = (
            metric.labels(graph) for metric in (self._queue_s, self._compute_s, self._rows)
        )

        def observe(batch: Batch) -> None:
            rows.observe(batch.rows)
            compute_s.observe(batch.compute_s)
            for seconds in batch.queue_s:
                queue_s.observe(seconds)

        return observe

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)
