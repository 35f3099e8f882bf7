"""How a parity report is shown, and when it ends a command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Table, Text, View, shown
from mmprod.errors import EnvironmentMissing, ParityFailed

if TYPE_CHECKING:
    from mmprod.parity.report import ParityReport

COLUMNS = ("leg", "graph", "precision", "target", "verdict", "cases", "why")
TASK_COLUMNS = ("metric", "by", "value", "unit", "samples")


def parity_views(report: ParityReport) -> list[View]:
    """A line per verdict, the task metrics if there are any, and the counts."""
    rows = [
        (
            row.subject.leg,
            row.subject.graph,
            row.subject.precision,
            row.subject.target or "-",
            row.status,
            row.cases,
            row.reason,
        )
        for row in report.rows
    ]
    counts = ", ".join(f"{report.count(status)} {status}" for status in ("pass", "fail", "not run"))
    title = f"Parity with {report.reference}"
    return [Table(title, COLUMNS, rows), *_tasks(report), Text(f"parity: {counts}")]


def _tasks(report: ParityReport) -> list[View]:
    rows = [(t.metric, t.backend, f"{t.value:.5g}", t.unit, t.samples) for t in report.tasks]
    return [Table("What a use sees", TASK_COLUMNS, rows)] if rows else []


def parity_data(report: ParityReport) -> dict[str, Any]:
    """The verdicts, and task metrics if there are any, as JSON; all figures are in the bundle's
    reports/parity.json.
    """
    tasks = {"tasks": [asdict(task) for task in report.tasks]} if report.tasks else {}
    return {**report.summary(), **tasks}


def require_ok(report: ParityReport, bundle: Path) -> None:
    """Raise ParityFailed unless something was compared and nothing failed."""
    if report.ok:
        return
    failed = [str(row.subject) for row in report.select(status="fail")]
    what = f"parity failed: {', '.join(failed)}" if failed else "parity compared nothing"
    details = shown(bundle / "reports" / "parity.md")
    raise ParityFailed(what, hint=f"{details} has the figures, the worst place and what to do")


def require_engines(report: ParityReport) -> None:
    """Demand the engines built for the device of this machine, one at least; others may wait.

    Raises ParityFailed when any engine failed, EnvironmentMissing when there is no device, no
    engine for it, or one that was not run.
    """
    from mmprod.runners.cuda import find_device

    failed = report.select(leg="torch-engine", status="fail")
    if failed:
        raise ParityFailed(
            f"engine failed: {failed[0].subject}: {failed[0].reason}", hint=failed[0].advice
        )
    engines = [row for row in report.select(leg="torch-engine") if row.subject.files]
    targets = ", ".join(sorted({row.subject.target for row in engines})) or "none"
    device = find_device()
    if not device.found:
        raise EnvironmentMissing(
            f"no engine was run: no CUDA device: {device.reason}",
            hint=f"run this on a device that engines were built for (here: {targets})",
        )
    ours = [row for row in engines if row.subject.target.rpartition("-")[2] == device.target]
    missing = [row for row in ours if row.status == "not run"]
    if not ours:
        raise EnvironmentMissing(
            f"no engine was built for this device, {device.target} ({device.name}); "
            f"targets of the bundle: {targets}",
            hint=f"mmprod build BUNDLE --trt --target {device.target}",
        )
    if missing:
        raise EnvironmentMissing(
            f"{len(missing)} of {len(ours)} engines for {device.target} were not run: "
            f"{missing[0].reason}",
            hint=missing[0].advice,
        )
