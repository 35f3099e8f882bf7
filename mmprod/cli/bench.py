"""`mmprod bench`: how fast a bundle answers, and whether it became slower."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import BundleArg, choices, command, group
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.paths import check_file_target
from mmprod.errors import BudgetMissed, ConfigError, EnvironmentMissing, ParityFailed

if TYPE_CHECKING:
    from mmprod.bench.figures import BenchReport
    from mmprod.bench.run import Live
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run

app = group("Measure latency, throughput and memory of graphs and engines.")


@command(app, "run")
def run(
    out: Output,
    bundle: BundleArg,
    graphs: Annotated[str, typer.Option("--graph", metavar="GRAPH,...", help="Graphs; all.")] = "",
    precision: Annotated[
        str, typer.Option(metavar="P,...", help="Precisions; all that were exported.")
    ] = "",
    batch: Annotated[
        str, typer.Option(metavar="N,...", help="Batch sizes; min, typical, max of the graph.")
    ] = "",
    warmup: Annotated[int, typer.Option(min=1, help="Calls before the first timed one.")] = 3,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls per row.")] = 30,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of every subject; 0: as many as cores.")
    ] = 0,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Measure PyTorch on this run, and a host loop, too."),
    ] = None,
    peers: Annotated[
        str, typer.Option(metavar="P,...", help="Of these, with --against: eager compile loop.")
    ] = "",
    target: Annotated[
        Path, typer.Option("--out", metavar="JSON", help="Report to write; plots go beside it.")
    ] = Path("bench.json"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the medians in the bundle; a signature is dropped.")
    ] = False,
) -> None:
    """Measure a bundle; only files with a parity pass get figures. Exit 5 if none has one."""
    from mmprod.bench.machine import usable_cores
    from mmprod.bench.run import Settings, run_bench
    from mmprod.bench.subjects import find_subjects
    from mmprod.bundle import open_bundle
    from mmprod.cli.bench_views import bench_views, in_words, write_plots
    from mmprod.manifest import write_json
    from mmprod.parity.standing import standing_rows

    settings = Settings(
        batches=_sizes(batch) if batch else (),
        warmup=warmup,
        runs=runs,
        threads=threads or usable_cores(),
    )
    if peers and against is None:
        raise ConfigError("--peers needs a run to compare with", hint="add --against RUN")
    check_file_target(target)
    opened = open_bundle(bundle)
    live, files = _live(opened, against)
    asked = choices(graphs), choices(precision)
    subjects = find_subjects(opened, standing_rows(opened), *asked, files, choices(peers))
    report = run_bench(opened, subjects, settings, live, lambda row: out.note(in_words(row)))
    write_json(target, report.as_dict())
    plots = write_plots(report, target)
    if keep and report.count("measured"):
        opened.put_summary("bench", report.summary())
        opened.save()
    data = {**report.as_dict(), "file": target, "plots": plots}
    out.result(data, *bench_views(report, target, plots))
    _require_figures(report)


@command(app, "compare")
def compare(
    out: Output,
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Report of `mmprod bench run`.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A later one.")],
    max_regress: Annotated[
        str, typer.Option(metavar="PERCENT", help="Growth of a median that is allowed.")
    ] = "5%",
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Compare figures of two machines all the same.")
    ] = False,
) -> None:
    """Compare two reports row by row; exit 6 when one became slower, or is no longer measured."""
    from mmprod.bench.compare import KEY, compare_reports, named, read_report

    limit = _percent(max_regress)
    before, after = read_report(old), read_report(new)
    changes = compare_reports(before, after, limit, other_machine=other_machine)
    worse = [change for change in changes if change.regressed]
    rows = [
        (
            *change.key,
            change.figure,
            f"{change.before_ms:.2f}",
            "-" if change.after_ms is None else f"{change.after_ms:.2f}",
            change.reason if change.growth is None else f"{change.growth:+.1%}",
            "fail" if change.regressed else "ok",
        )
        for change in changes
    ]
    columns = (*KEY, "figure", "old p50 ms", "new p50 ms", "change", f"within {100 * limit:g} %")
    data = {
        "ok": not worse,
        "max_regress": limit,
        "old_machine": named(before),
        "new_machine": named(after),
        "changes": [change.as_dict() for change in changes],
    }
    summary = f"{len(changes)} figures, {len(worse)} slower than allowed or gone"
    out.result(data, Table("", columns, rows), Text(summary))
    if worse:
        first = worse[0]
        change = first.reason if first.growth is None else f"{first.growth:+.1%}"
        raise BudgetMissed(
            f"{len(worse)} of {len(changes)} figures regressed, first "
            f"{' '.join(part for part in first.key if part)} ({first.figure}): {change}",
            hint="measure both again on an idle machine before you believe it",
        )


def _live(bundle: Bundle, path: Path | None) -> tuple[Live | None, dict[str, str] | None]:
    """The run to compare with, and the hashes of its files. Raises ConfigError for another's."""
    if path is None:
        return None, None
    from mmprod.bench.host_loop import sampling_order
    from mmprod.bench.run import Live
    from mmprod.checkpoint import open_run

    opened: Run = open_run(path)
    if opened.dims != bundle.dims or opened.config.sampler != bundle.sampler:
        raise ConfigError(
            f"{shown(path)} is not the run of {shown(bundle.root)}: its sizes or sampler differ",
            hint="give the run that the bundle was exported from",
        )
    order = sampling_order(bundle.dims, bundle.sampler)
    return Live(path, order), {entry.path: entry.sha256 for entry in opened.files}


def _require_figures(report: BenchReport) -> None:
    """Raises when nothing was measured: ParityFailed if a pass was lacking, else what was."""
    if report.count("measured"):
        return
    reason = next(row.reason for row in report.rows if row.status != "measured")
    if report.count("void"):
        void = next(row.reason for row in report.rows if row.status == "void")
        raise ParityFailed(
            f"no figures: every row is void or not run, first: {void}",
            hint="mmprod parity run BUNDLE",
        )
    raise EnvironmentMissing(f"no figures: nothing ran here, first: {reason}", hint="mmprod doctor")


def _sizes(text: str) -> tuple[int, ...]:
    parts = choices(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batch {text!r} is not a list of sizes", hint="--batch 1,4,16")
    return tuple(int(part) for part in parts)


def _percent(text: str) -> float:
    """`5%` or `5` -> 0.05. Raises ConfigError."""
    number: Any = text.strip().removesuffix("%")
    try:
        value = float(number) / 100
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"--max-regress {text!r} is no percentage", hint="--max-regress 5%")
    return value
