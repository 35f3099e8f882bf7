"""The parity report for people: Markdown whose tables also line up as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mmprod.parity.compare import FIGURES
from mmprod.parity.limits import LIMITS, Limit
from mmprod.parity.report import Output, ParityReport, Row, Task

_VERDICTS = ("leg", "graph", "precision", "target", "status", "cases", "samples", "reason")
_FIGURES = ("graph", "precision", "target", "output", "figure", "value", "limit", "margin", "used")
_NEVER = {"<=": "never above", ">=": "never below"}


def render_markdown(report: ParityReport) -> str:
    """Verdicts first, then what to do, figures with margins, files with hashes, limits with
    reasons.
    """
    parts = [
        f"# Parity of {report.bundle}: {_headline(report)}",
        f"Compared with {report.reference}. {_backends(report.rows)}Graphs are judged against "
        "PyTorch in fp32, whatever their own precision. A verdict holds for the files listed below "
        "and no others.",
        _table(_VERDICTS, [_verdict(row) for row in report.rows]),
        *_next_steps(report.rows),
        *_measured(report.rows),
        *_tasks(report.tasks),
        *_files(report.rows),
        "## Limits",
        _limits(report.rows),
        "Figures:\n\n" + "\n".join(f"- {name}: {text}" for name, text in FIGURES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(report: ParityReport) -> str:
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("pass", "fail", "not run"))
    if report.ok:
        return f"ok ({counts})"
    return f"FAILED ({counts})" if report.count("fail") else f"NOTHING COMPARED ({counts})"


def _backends(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row.backend for row in rows if row.backend)
    return f"Run by {', '.join(names)}. " if names else ""


def _verdict(row: Row) -> list[str]:
    s = row.subject
    status = row.status.upper() if row.status == "fail" else row.status
    return [
        s.leg,
        s.graph,
        s.precision,
        s.target or "-",
        status,
        str(row.cases),
        str(row.samples),
        row.reason,
    ]


def _next_steps(rows: Sequence[Row]) -> list[str]:
    """Each distinct advice once, with the rows it is for."""
    steps: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.status != "fail"):
        if row.advice:
            steps.setdefault(f"{row.status}: {row.advice}", []).append(str(row.subject))
    lines = [f"- {step} ({_some(subjects)})" for step, subjects in steps.items()]
    return ["## What to do next", "\n".join(lines)] if lines else []


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _measured(rows: Sequence[Row]) -> list[str]:
    lines = [line for row in rows for output in row.outputs for line in _figures(row, output)]
    places = [
        f"- {row.subject}, {output.name}: {text}"
        for row in rows
        for output in row.outputs
        for text in _places(output)
    ]
    if not lines:
        return []
    found = ["Where they differ most:", "\n".join(places)] if places else []
    return ["## Figures", _table(_FIGURES, lines), *found]


def _figures(row: Row, output: Output) -> list[list[str]]:
    """Figures with a limit, then those without."""
    head = [row.subject.graph, row.subject.precision, row.subject.target or "-", output.name]
    limited = {check.figure for check in output.checks}
    return [
        [
            *head,
            check.figure,
            f"{check.value:.6g}",
            f"{check.bound} {check.limit:.6g}",
            f"{check.margin:+.3g}" if check.ok else f"{check.margin:+.3g} FAIL",
            "all" if check.used is None else f"{check.used:.1%}",
        ]
        for check in output.checks
    ] + [
        [*head, figure, f"{value:.6g}", "-", "-", "-"]
        for figure, value in output.figures.items()
        if figure not in limited
    ]


def _places(output: Output) -> list[str]:
    texts = [f"worst at {output.worst}"] if output.worst else []
    if output.first and output.first != output.worst:
        texts.append(f"first at {output.first}")
    return texts


def _tasks(tasks: Sequence[Task]) -> list[str]:
    lines = [
        [task.metric, task.backend, f"{task.value:.5g} {task.unit}", str(task.samples)]
        for task in tasks
    ]
    head = ("metric", "by", "value", "samples")
    return ["## What a use sees", _table(head, lines)] if lines else []


def _files(rows: Sequence[Row]) -> list[str]:
    entries = {entry.path: entry.sha256 for row in rows for entry in row.subject.files}
    if not entries:
        return []
    return [
        "## Files",
        _table(("file", "sha256"), [list(item) for item in sorted(entries.items())]),
    ]


def _limits(rows: Sequence[Row]) -> str:
    """The limits of the precisions that were asked for."""
    asked = {row.subject.precision for row in rows}

    def line(role: str, precision: str, kind: str, limit: Limit) -> list[str]:
        return [
            role,
            precision,
            kind,
            render_limit(limit),
            limit.reason,
        ]

    lines = [
        line(*key, limit) for key, limits in LIMITS.items() if key[1] in asked for limit in limits
    ]
    return _table(("role", "precision", "graphs", "limit", "why"), lines)


def render_limit(limit: Limit) -> str:
    """A limit in words: the figure, its bound, and what few samples change."""
    text = f"{limit.figure} {limit.bound} {limit.value:.7g}"
    sign = "+" if limit.bound == "<=" else "-"
    if limit.spread:
        text = f"{text} {sign} {limit.spread:g}/sqrt(samples)"
    return text if limit.loosest is None else f"{text}, {_NEVER[limit.bound]} {limit.loosest:g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table padded to line up; the last column is left ragged."""
    cells = [list(head), *([cell.replace("|", "/") for cell in line] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head) - 1)]
    rows = [
        "| "
        + " | ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]])
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in [*widths, len(head[-1])]) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
