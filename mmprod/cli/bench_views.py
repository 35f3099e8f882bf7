"""What `mmprod bench run` found, as people read it: tables, a summary, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmprod.bench.figures import PEERS, BenchReport, Row, times_as_fast
from mmprod.cli.output import Table, Text, View, megabytes, shown
from mmprod.manifest import write_text
from mmprod.report.plot import Line, Plot, render_plot


def bench_views(report: BenchReport, target: Path, plots: Sequence[Path]) -> list[View]:
    """Figures, how they compare, and on what they were measured. `target`: where the report is."""
    columns = (
        "graph", "subject", "batch", "p50 ms", "p90", "p99", "samples/s", "end to end p50",
        "peak memory", "status",
    )  # fmt: skip
    views: list[View] = [Table("", columns, [_cells(row) for row in report.rows])]
    ratios = [cells for row in report.rows if (cells := _ratios(row, report.rows))]
    if ratios:
        against = ("graph", "subject", "batch", *PEERS)
        views.append(Table("times as fast as, by the median", against, ratios))
    machine = report.machine
    files = ", ".join(shown(path) for path in (target, *plots))
    summary = (
        f"{machine['processor']}, {machine['cores']} cores, {report.settings['threads']} threads, "
        f"load {machine['load']} before and {machine['load_after']} after\n"
        f"{report.count('measured')} rows measured, {report.count('void')} void, "
        f"{report.count('not run')} not run: {files}"
    )
    return [*views, Text(summary)]


def write_plots(report: BenchReport, target: Path) -> list[Path]:
    """Latency against batch, a picture per graph that has figures: NAME.GRAPH.svg."""
    plots = []
    measured = [row for row in report.rows if row.graph]
    for graph in dict.fromkeys(row.subject.graph for row in measured):
        rows = [row for row in measured if row.subject.graph == graph]
        lines = [
            Line(
                name,
                [(r.batch, r.graph.p50_ms) for r in rows if r.graph and r.subject.name == name],
            )
            for name in dict.fromkeys(row.subject.name for row in rows)
        ]
        title = f"{graph}: median latency, {report.settings['threads']} threads"
        marks = sorted({row.batch for row in rows})
        plot = Plot(title, "batch", "ms per call", lines, log_x=True, marks=marks)
        path = target.with_name(f"{target.stem}.{graph}.svg")
        write_text(path, render_plot(plot))
        plots.append(path)
    return plots


def in_words(row: Row) -> str:
    """A row as a remark while the others are still measured."""
    found = f"p50 {row.graph.p50_ms:.2f} ms" if row.graph else f"{row.status}: {row.reason}"
    return f"{row.subject.graph} {row.subject.name} batch {row.batch}: {found}"


def _cells(row: Row) -> tuple[object, ...]:
    head = (row.subject.graph, row.subject.name, row.batch)
    if row.graph is None:
        return (*head, *("-",) * 6, f"{row.status}: {row.reason}")
    timing, whole = row.graph, row.end_to_end
    return (
        *head,
        f"{timing.p50_ms:.2f}",
        f"{timing.p90_ms:.2f}",
        f"{timing.p99_ms:.2f}",
        f"{timing.samples_per_s:.1f}",
        f"{whole.p50_ms:.2f}" if whole else "-",
        megabytes(row.peak_bytes) if row.peak_bytes else "-",
        row.status,
    )


def _ratios(row: Row, rows: Sequence[Row]) -> tuple[object, ...]:
    """Empty where there is nothing to compare with."""
    found = times_as_fast(row, rows)
    if not found:
        return ()
    cells = (f"{found[peer]:.2f}" if peer in found else "-" for peer in PEERS)
    return (row.subject.graph, row.subject.name, row.batch, *cells)
