"""The parity check of a whole bundle: compare every graph and engine, write the report into the
bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import write_json, write_text
from mmprod.parity.candidates import exported_precisions, offer
from mmprod.parity.cases import (
    Case,
    check_batches,
    generated_cases,
    generated_count,
    stored_cases,
    stored_names,
)
from mmprod.parity.check import check_graph
from mmprod.parity.limits import PRECISIONS
from mmprod.parity.merge import REPORT, merge
from mmprod.parity.overflow import audit
from mmprod.parity.render import render_markdown
from mmprod.parity.report import ParityReport, Row

logger = logging.getLogger(__name__)

STORED = "stored outputs of PyTorch"


@dataclass(frozen=True)
class ParityEvent:
    """Progress: `done` of `total` cases of a graph. `rows` are its verdicts, once all are done."""

    graph: str
    done: int
    total: int
    rows: tuple[Row, ...] = ()


def run_parity(
    bundle: Bundle,
    *,
    reference: Callable[[GraphSpec], Runner] | None = None,
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 3, 8),
    seeds: int = 2,
    on_event: Callable[[ParityEvent], None] | None = None,
) -> ParityReport:
    """Compare all graphs and engines of a bundle with PyTorch; write reports/parity.{json,md},
    summary, manifest.

    `reference` gives PyTorch's runner of a graph: the stored cases and those generated from
    `batches` and `seeds` are then run live. None: the stored cases alone, against their stored
    outputs, without torch. `precisions` None: those that were exported. Failures are rows of the
    report, whose `ok` is then False, not exceptions. Verdicts of earlier runs on what this one
    leaves out stay in the report while they hold (merge.py).
    Raises ConfigError for precisions without limits, batches no graph takes, or a bundle with no
    graphs; IntegrityError when a file differs from the manifest.
    """
    asked = tuple(precisions) if precisions is not None else exported_precisions(bundle)
    _check_request(bundle, precisions, asked)
    check_batches(bundle.specs.values(), batches, seeds)
    rows: list[Row] = []
    backends: dict[str, None] = {}
    for spec in bundle.specs.values():
        found = offer(bundle, spec, asked)
        runner = reference(spec) if reference and found.candidates else None
        try:
            if runner:
                backends[runner.backend] = None
            cases, total = _cases(bundle, spec, batches if runner else (), seeds if runner else 0)
            compared = check_graph(
                spec, cases, runner, found.candidates, _progress(spec, total, on_event)
            )
            compared = [audit(bundle, spec, row) for row in compared]
        finally:
            if runner:
                runner.close()
        graph_rows = [
            _without_paths(bundle, row) for row in _sorted([*compared, *found.absent], asked)
        ]
        rows.extend(graph_rows)
        if on_event:
            on_event(ParityEvent(spec.name, total, total, tuple(graph_rows)))
    live = reference is not None
    report = ParityReport(
        bundle.name,
        ", ".join(backends) if live and backends else STORED,
        tuple(batches) if live else (),
        seeds if live else 0,
        merge(bundle, rows, asked),
    )
    _write(bundle, report)
    return report


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


def _write(bundle: Bundle, report: ParityReport) -> None:
    """Both files, then the manifest. Refused when another process wrote meanwhile."""
    bundle.check_current()
    data = bundle.root / REPORT
    text = data.with_suffix(".md")
    write_json(data, report.as_dict())
    write_text(text, render_markdown(report))
    for path in (data, text):
        bundle.add(path, role="report")
    bundle.put_summary("parity", report.summary())
    bundle.save()
    counts = [report.count("pass"), report.count("fail"), report.count("not run")]
    logger.info("parity: %d pass, %d fail, %d not run", *counts)
