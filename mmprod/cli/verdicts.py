"""How a parity report is shown, and when it ends a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Table, Text, View, shown
from mmprod.errors import EnvironmentMissing, ParityFailed

if TYPE_CHECKING:
    from mmprod.parity.report import ParityReport

COLUMNS = ("leg", "graph", "precision", "target", "verdict", "cases", "why")


def parity_views(report: ParityReport) -> list[View]:
    """A line per verdict and the counts."""
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
    return [Table(title, COLUMNS, rows), Text(f"parity: {counts}")]


def parity_data(report: ParityReport) -> dict[str, Any]:
    """The verdicts as JSON; all figures are in the bundle's reports/parity.json."""
    return report.summary()


def require_ok(report: ParityReport, bundle: Path) -> None:
    """Raise ParityFailed unless something was compared and nothing failed."""
    if report.ok:
        return
    failed = [str(row.subject) for row in report.select(status="fail")]
    what = f"parity failed: {', '.join(failed)}" if failed else "parity compared nothing"
    details = shown(bundle / "reports" / "parity.md")
    raise ParityFailed(what, hint=f"{details} has the figures, the worst place and what to do")


def require_engines(report: ParityReport) -> None:
    """Raise EnvironmentMissing unless every engine leg was run."""
    missing = [row for row in report.select(leg="torch-engine", status="not run")]
    if missing or not report.select(leg="torch-engine"):
        reason = missing[0].reason if missing else "the bundle holds no engines"
        raise EnvironmentMissing(
            f"{len(missing)} engine legs were not run: {reason}",
            hint="run this on the device that the engines were built for",
        )
