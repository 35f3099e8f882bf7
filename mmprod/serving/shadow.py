"""Shadow parity: a share of what is served, repeated on the reference, and how far apart they are.

The reference is the bundle's fp32 graph in ONNX Runtime, judged by the figures and limits of
parity. One thread works through a short queue, off the path of any request; what does not fit is
dropped and counted. A graph of the reference is opened when it is first needed, so a server with
shadows needs the memory of both.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Arrays, Runner
from mmprod.parity.cases import Case
from mmprod.parity.measure import defect_of, judge_outputs, measure_case
from mmprod.serving.metrics import Metrics

logger = logging.getLogger(__name__)
REFERENCE = "fp32"
WAITING = 8


@dataclass(frozen=True)
class _Pair:
    graph: str
    precision: str
    inputs: Arrays
    outputs: Arrays


class Shadow:
    """The reference of one bundle."""

    def __init__(self, bundle: Bundle, metrics: Metrics) -> None:
        self._bundle, self._metrics = bundle, metrics
        self._runners: dict[str, Runner] = {}
        self._queue: queue.Queue[_Pair | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, graph: str, precision: str, inputs: Arrays, outputs: Arrays) -> None:
        """Take a request to repeat, or drop it. Never waits."""
        try:
            self._queue.put_nowait(_Pair(graph, precision, inputs, outputs))
        except queue.Full:
            self._metrics.shadow_dropped.inc()

    def close(self) -> None:
        """Finish what is queued and free the runners."""
        self._queue.put(None)
        self._thread.join()
        for runner in self._runners.values():
            runner.close()

    def _work(self) -> None:
        while pair := self._queue.get():
            try:
                self._compare(pair)
            except Exception:
                self._metrics.shadow_checks.labels(pair.graph, "error").inc()
                logger.exception("shadow of %s", pair.graph)

    def _compare(self, pair: _Pair) -> None:
        spec = self._bundle.specs[pair.graph]
        rows = len(pair.inputs[spec.inputs[0].name])
        case = Case("shadow", dict(pair.inputs), None, {spec.dims[0].name: rows})
        wanted = self._reference(pair.graph)(pair.inputs)
        defect = defect_of(spec, case, wanted, pair.outputs)
        if defect:
            self._metrics.shadow_checks.labels(pair.graph, "fail").inc()
            logger.error("shadow of %s: %s", pair.graph, defect)
            return
        stats = measure_case(spec, case, wanted, pair.outputs)
        judged = judge_outputs(spec, stats, pair.precision, rows)
        for output in judged:
            for figure, value in output.figures.items():
                self._metrics.shadow_figure.labels(pair.graph, output.name, figure).set(value)
        checks = [check for output in judged for check in output.checks]
        for check in checks:
            used = check.used if check.used is not None else float("inf")
            self._metrics.shadow_used.labels(pair.graph).observe(used)
        over = [str(check) for check in checks if not check.ok]
        self._metrics.shadow_checks.labels(pair.graph, "fail" if over else "pass").inc()
        if over:
            logger.warning("shadow of %s: not met: %s", pair.graph, "; ".join(over))

    def _reference(self, graph: str) -> Runner:
        if graph not in self._runners:
            from mmprod.runners.ort import OrtRunner

            files = self._bundle.artefacts(role="onnx", graph=graph, precision=REFERENCE)
            path = self._bundle.path(files[0])
            self._runners[graph] = OrtRunner(self._bundle.specs[graph], path, threads=1)
        return self._runners[graph]


def check_reference(bundle: Bundle) -> None:
    """Raises ConfigError for a bundle without the graphs to compare with."""
    held = {a.graph for a in bundle.artefacts(role="onnx", precision=REFERENCE)}
    lacking = {a.graph for a in bundle.artefacts(role="onnx")} - held
    if lacking:
        raise ConfigError(
            f"{bundle.root} has no {REFERENCE} graph of {', '.join(sorted(lacking))}",
            hint="leave --shadow out, or export again with --precision fp32,...",
        )
