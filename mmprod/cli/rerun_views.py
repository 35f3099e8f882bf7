"""What a repeated comparison shows, what it refuses, and when it ends in failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Table, Text, View, shown
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed

if TYPE_CHECKING:
    from mmprod.parity.report import ParityReport
    from mmprod.parity.rerun import Change, Request

COLUMNS = ("what", "before", "now", "change", "figures that moved")
FEW = 3
"""figures of a row that are shown to people; --json has all"""


def require_same_source(request: Request, against: Path | None) -> None:
    """Refuse to compare with something else than the last report did."""
    if request.live and against is None:
        raise ConfigError(
            f"the last report was made live with {request.reference}",
            hint="give the run again: mmprod parity rerun BUNDLE --against RUN",
        )
    if against is not None and not request.live:
        raise ConfigError(
            f"the last report was made with {request.reference}, not with a run",
            hint="leave --against out, or start anew: mmprod parity run BUNDLE --against RUN",
        )


def rerun_views(request: Request, report: ParityReport, found: Sequence[Change]) -> list[View]:
    """A line for each row and the counts."""
    rows = [
        (c.subject, c.before or "-", c.after or "-", c.verdict + _why(c), _moved(c)) for c in found
    ]
    counts = {c.verdict: sum(other.verdict == c.verdict for other in found) for c in found}
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    title = f"Parity with {report.reference}, against the last report ({request.reference})"
    return [Table(title, COLUMNS, rows), Text(f"rerun: {text}")]


def rerun_data(request: Request, report: ParityReport, found: Sequence[Change]) -> dict[str, Any]:
    """All changes with all figures, and the new verdicts."""
    rows = [
        {
            "what": change.subject,
            "before": change.before or None,
            "now": change.after or None,
            "change": change.verdict,
            "files_changed": change.files_changed,
            "backends": list(change.backends),
            "figures": {key: list(pair) for key, pair in change.figures.items()},
            "reason": change.reason,
        }
        for change in found
    ]
    return {
        "ok": not _failures(found) and not _lost(found),
        "reference_before": request.reference,
        "same_limits": request.same_limits,
        "changes": rows,
        "report": report.summary(),
    }


def require_no_new_failure(found: Sequence[Change], bundle: Path) -> None:
    """Raise ParityFailed when something fails that did not fail before."""
    failed = _failures(found)
    if failed:
        details = shown(bundle / "reports" / "parity.md")
        raise ParityFailed(
            f"parity fails anew: {', '.join(change.subject for change in failed)}: "
            f"{failed[0].reason}",
            hint=f"{details} has the figures, the worst place and what to do",
        )


def require_nothing_lost(found: Sequence[Change]) -> None:
    """Raise EnvironmentMissing when something that passed before was not run now."""
    lost = _lost(found)
    if lost:
        raise EnvironmentMissing(
            f"passed before, not run now: {', '.join(change.subject for change in lost)}: "
            f"{lost[0].reason or 'the bundle has it no more'}",
            hint="`mmprod doctor` shows what is missing here; `mmprod parity run` starts anew",
        )


def _failures(found: Sequence[Change]) -> list[Change]:
    return [change for change in found if change.verdict == "new failure"]


def _lost(found: Sequence[Change]) -> list[Change]:
    return [c for c in found if c.before == "pass" and c.after in ("", "not run")]


def _why(change: Change) -> str:
    reasons = {"other files": change.files_changed, "other runner": change.backend_changed}
    found = [reason for reason, so in reasons.items() if so]
    return f" ({', '.join(found)})" if found else ""


def _moved(change: Change) -> str:
    texts = [
        f"{key} {_number(old)} -> {_number(new)}" for key, (old, new) in change.figures.items()
    ]
    more = f", {len(texts) - FEW} more" if len(texts) > FEW else ""
    return ", ".join(texts[:FEW]) + more if texts else "-"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
