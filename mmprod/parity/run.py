"""The parity check of a whole bundle: compare every graph and engine, write the report into the
bundle.

With a time-out each candidate runs in a process of its own (worker.py); without one in this
process, which is for files that were made here a moment ago.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from mmprod.bundle import Bundle
from mmprod.bundle.undo import put_back_on_failure
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry, write_json, write_text
from mmprod.parity.arrays import ARRAYS, Maps, maps_of, read_maps, write_maps
from mmprod.parity.candidates import Candidate, exported_precisions, offer
from mmprod.parity.cases import (
    Case,
    check_batches,
    generated_cases,
    generated_count,
    stored_cases,
    stored_names,
)
from mmprod.parity.check import check_graph
from mmprod.parity.decoder import decoding
from mmprod.parity.limits import PRECISIONS
from mmprod.parity.merge import REPORT, merge
from mmprod.parity.overflow import audit, open_here
from mmprod.parity.render import render_markdown
from mmprod.parity.report import ParityReport, Row, Task
from mmprod.parity.trajectory import following
from mmprod.parity.worker import Job, Workers
from mmprod.runners import cuda

logger = logging.getLogger(__name__)

STORED = "stored outputs of PyTorch"
PAGE = "reports/parity.html"

Page = Callable[[Mapping[str, Any], Maps], str]
"""(report as JSON data, its maps) -> the page, as HTML"""


@dataclass(frozen=True)
class ParityEvent:
    """Progress: `done` of `total` cases of a graph. `rows` are its verdicts, once all are done."""

    graph: str
    done: int
    total: int
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    `reference` gives PyTorch's runner of a graph: the stored cases and those generated from
    `batches` and `seeds` are then run live. None: the stored cases alone, against their stored
    outputs, without torch. `precisions` None: those that were exported. `timeout_s`: how long a
    worker process may take for one answer; None: everything runs in this process. `page` makes
    reports/parity.html; None: there is none afterwards. `tasks`: what a use sees, for the report.
    """

    bundle: Bundle
    reference: Callable[[GraphSpec], Runner] | None = None
    precisions: Sequence[str] | None = None
    batches: Sequence[int] = (1, 3, 8)
    seeds: int = 2
    on_event: Callable[[ParityEvent], None] | None = None
    timeout_s: float | None = None
    page: Page | None = None
    tasks: Callable[[], Sequence[Task]] | None = None

    def run(self) -> ParityReport:
        """Compare, then write reports/parity.{json,md,npz,html}, summary and manifest. Raises as
        `compare` and `read_maps` do.
        """
        earlier = read_maps(self.bundle)
        report = self.compare()
        maps = maps_of(report.rows, earlier)
        _write(self.bundle, report, maps, self.page(report.as_dict(), maps) if self.page else "")
        return report

    def compare(self) -> ParityReport:
        """The verdicts. Failures are rows of the report, whose `ok` is then False, not exceptions.
        Verdicts of earlier runs on what this one leaves out stay while they hold (merge.py).

        Raises ConfigError for precisions without limits, batches no graph takes, or a bundle with
        no graphs; IntegrityError when a file differs from the manifest.
        """
        bundle = self.bundle
        asked = exported_precisions(bundle) if self.precisions is None else tuple(self.precisions)
        _check_request(bundle, self.precisions, asked)
        check_batches(bundle.specs.values(), self.batches, self.seeds)
        rows: list[Row] = []
        backends: dict[str, None] = {}
        with ExitStack() as stack:
            workers = self.timeout_s and stack.enter_context(Workers(self.timeout_s))
            for spec in bundle.specs.values():
                graph_rows, total = self._graph(spec, asked, workers or None, backends)
                rows.extend(graph_rows)
                if self.on_event:
                    self.on_event(ParityEvent(spec.name, total, total, tuple(graph_rows)))
        live = self.reference is not None
        return ParityReport(
            bundle.name,
            ", ".join(backends) if live and backends else STORED,
            tuple(self.batches) if live else (),
            self.seeds if live else 0,
            merge(bundle, rows, asked),
            tuple(self.tasks()) if self.tasks else (),
        )

    def _graph(
        self,
        spec: GraphSpec,
        asked: Sequence[str],
        workers: Workers | None,
        backends: dict[str, None],
    ) -> tuple[list[Row], int]:
        """The rows of one graph and how many cases it has; notes the reference's backend."""
        bundle = self.bundle
        found = offer(bundle, spec, asked)
        candidates = [_apart(bundle, item, workers) for item in found.candidates]
        runner = self.reference(spec) if self.reference and candidates else None
        try:
            if runner:
                backends[runner.backend] = None
            batches, seeds = (self.batches, self.seeds) if runner else ((), 0)
            cases, total = _cases(bundle, spec, batches, seeds)
            told = _progress(spec, total, self.on_event)
            apart = partial(_apart, bundle, workers=workers)
            with (
                decoding(bundle, spec, candidates, self.reference, apart) as shown,
                following(bundle, spec, shown, self.reference, apart) as ready,
            ):
                compared = check_graph(spec, cases, runner, ready, told)
            start = open_here if workers is None else partial(_start, workers, bundle)
            compared = [audit(bundle, spec, row, start) for row in compared]
        finally:
            if runner:
                runner.close()
        rows = _sorted([*compared, *found.absent], asked)
        return [_without_paths(bundle, row) for row in rows], total


def run_parity(
    bundle: Bundle,
    *,
    reference: Callable[[GraphSpec], Runner] | None = None,
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 3, 8),
    seeds: int = 2,
    on_event: Callable[[ParityEvent], None] | None = None,
) -> ParityReport:
    """`Comparison(...).run()` in this process: for files that were made here a moment ago."""
    return Comparison(bundle, reference, precisions, batches, seeds, on_event).run()


def _apart(bundle: Bundle, candidate: Candidate, workers: Workers | None) -> Candidate:
    """The candidate in a worker process, if there are any. Without a device no engine is loaded, so
    none is started for it only to say so.
    """
    idle = candidate.subject.leg == "torch-engine" and not cuda.find_device().found
    if workers is None or idle:
        return candidate
    assert isinstance(candidate.open, partial)
    job = Job.of(candidate.open, bundle.root, candidate.subject.files)
    return replace(candidate, open=partial(workers.open, job))


def _start(
    workers: Workers, bundle: Bundle, call: partial[Runner], files: Sequence[FileEntry]
) -> Runner:
    return workers.open(Job.of(call, bundle.root, files))


def _check_request(bundle: Bundle, precisions: Sequence[str] | None, asked: Sequence[str]) -> None:
    for precision in precisions or ():
        if precision not in PRECISIONS:
            raise ConfigError(
                f"no parity limits are set for precision {precision!r}",
                hint=f"choose from {', '.join(PRECISIONS)}",
            )
    if not asked:
        raise ConfigError(f"{bundle.root} holds no graphs to compare", hint="mmprod export RUN")


def _cases(
    bundle: Bundle, spec: GraphSpec, batches: Sequence[int], seeds: int
) -> tuple[Iterable[Case], int]:
    """Stored cases, then generated ones if there are seeds, and how many there are."""
    streams: list[Iterator[Case]] = []
    total = 0
    stored = bundle.artefacts(role="reference", graph=spec.name)
    bundle.verify(stored)
    for artefact in stored:
        path = bundle.path(artefact)
        total += len(stored_names(path, spec))
        streams.append(stored_cases(path, spec))
    if seeds:
        total += generated_count(spec, batches, seeds)
        streams.append(generated_cases(spec, batches, seeds))
    return chain.from_iterable(streams), total


def _progress(
    spec: GraphSpec, total: int, on_event: Callable[[ParityEvent], None] | None
) -> Callable[[Case], None]:
    done = 0

    def count(case: Case) -> None:
        nonlocal done
        done += 1
        logger.debug("%s: %s done (%d of %d)", spec.name, case.name, done, total)
        if on_event:
            on_event(ParityEvent(spec.name, done, total))

    return count


def _sorted(rows: Sequence[Row], precisions: Sequence[str]) -> list[Row]:
    """ONNX Runtime before engines, precisions as asked, targets by name."""
    legs = ("torch-ort", "torch-engine")
    return sorted(
        rows,
        key=lambda row: (
            legs.index(row.subject.leg),
            precisions.index(row.subject.precision),
            row.subject.target,
        ),
    )


def _without_paths(bundle: Bundle, row: Row) -> Row:
    """Where the folder lies on this machine means nothing once the bundle is copied elsewhere."""
    return replace(row, reason=row.reason.replace(f"{bundle.root}/", ""))


def _write(bundle: Bundle, report: ParityReport, maps: Maps, page: str) -> None:
    """All files, then the manifest, or nothing. Refused when another process wrote meanwhile. The
    page of an earlier report goes, so that none speaks of another one.
    """
    texts = {REPORT.replace(".json", ".md"): render_markdown(report), PAGE: page}
    listed = {artefact.path for artefact in bundle.artefacts(role="report")}
    with bundle.writing(), put_back_on_failure(bundle.root, [REPORT, ARRAYS, *texts]):
        write_json(bundle.root / REPORT, report.as_dict())
        bundle.add(bundle.root / REPORT, role="report")
        for name, text in texts.items():
            if text:
                write_text(bundle.root / name, text)
                bundle.add(bundle.root / name, role="report")
            elif name in listed:
                bundle.remove(bundle.root / name)
        write_maps(bundle, maps)
        bundle.put_summary("parity", report.summary())
        bundle.save()
    counts = [report.count("pass"), report.count("fail"), report.count("not run")]
    logger.info("parity: %d pass, %d fail, %d not run", *counts)
