"""`mmprod parity`: does every graph and engine of a bundle still answer like PyTorch?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmprod.cli.command import BundleArg, choices, command, group
from mmprod.cli.explain import explain
from mmprod.cli.output import Output, Text, shown
from mmprod.cli.parity_page import parity_page
from mmprod.cli.progress import parity_tick, progress
from mmprod.cli.rerun_views import (
    require_no_new_failure,
    require_nothing_lost,
    require_same_source,
    rerun_data,
    rerun_views,
)
from mmprod.cli.sabotage import sabotage
from mmprod.cli.selftest import Timeout, accept, selftest
from mmprod.cli.source import torch_runners
from mmprod.cli.verdicts import parity_data, parity_views, require_engines, require_ok
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.graphs.runner import Runner
    from mmprod.graphs.spec import GraphSpec
    from mmprod.parity.report import Task

app = group("Compare graphs and engines with the model they came from.")


@command(app, "run")
def run(
    out: Output,
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare live with this run; else with stored outputs."),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="P,...", help="Precisions; all that were exported.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Noise seeds per batch size (live).")] = 2,
    batches: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes (live).")] = "1,3,8",
    need_engines: Annotated[
        bool,
        typer.Option("--require-engines", help="Exit 3 unless this device's engines were run."),
    ] = False,
    tasks: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Add what a use sees (PSNR, attributes) over N held-out samples; with --against.",
        ),
    ] = 0,
    timeout: Timeout = 300,
) -> None:
    """Check everything and write reports/parity.{html,md} into the bundle; exit 5 when it fails."""
    from mmprod.bundle import open_bundle
    from mmprod.parity.run import PAGE, Comparison

    sizes = _numbers(batches)
    if tasks and against is None:
        raise ConfigError("--tasks needs the run, for its data", hint="add --against RUN")
    opened = open_bundle(bundle)
    with progress(out, parity_tick) as on_event:
        report = Comparison(
            opened,
            reference=_live(against),
            precisions=choices(precision) or None,
            batches=sizes,
            seeds=seeds,
            on_event=on_event,
            timeout_s=timeout,
            page=parity_page,
            tasks=_tasks(out, opened, against, tasks) if tasks else None,
        ).run()
    out.result(parity_data(report), *parity_views(report), _link(opened.root / PAGE))
    require_ok(report, opened.root)
    if need_engines:
        require_engines(report)


@command(app, "rerun")
def rerun(
    out: Output,
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run, when the last report was made live with one."),
    ] = None,
    timeout: Timeout = 300,
) -> None:
    """Do exactly what the last report did and say row by row what changed.

    Exit 5 when something fails that did not, 3 when something that passed was not run; the report
    in the bundle is the new one.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.rerun import changes, last_request
    from mmprod.parity.run import PAGE, Comparison

    opened = open_bundle(bundle)
    request = last_request(opened)
    require_same_source(request, against)
    if not request.same_limits:
        out.note("the limits have changed since the last report: verdicts may change with them")
    with progress(out, parity_tick) as on_event:
        report = Comparison(
            opened,
            reference=_live(against),
            precisions=request.precisions,
            batches=request.batches,
            seeds=request.seeds,
            on_event=on_event,
            timeout_s=timeout,
            page=parity_page,
        ).run()
    found = changes(request, report)
    views = rerun_views(request, report, found)
    out.result(rerun_data(request, report, found), *views, _link(opened.root / PAGE))
    require_no_new_failure(found, opened.root)
    require_nothing_lost(found)


command(app, "selftest")(selftest)
command(app, "accept")(accept)
command(app, "explain")(explain)
command(app, "sabotage")(sabotage)


def _live(run: Path | None) -> Callable[[GraphSpec], Runner] | None:
    """PyTorch's runner of each graph of a run; None without a run."""
    if run is None:
        return None
    from mmprod.checkpoint import open_run

    runners = torch_runners(open_run(run))
    return lambda spec: runners(spec.name)


def _tasks(
    out: Output, bundle: Bundle, run: Path | None, count: int
) -> Callable[[], Sequence[Task]] | None:
    """What adds task metrics to a report; None without a run. Raises where data are missing."""
    if run is None:
        return None
    from mmprod.checkpoint import open_run
    from mmprod.cli.tasks import Tasks

    tasks = Tasks.of(bundle, open_run(run), count)
    return lambda: tasks.figures(out)


def _link(page: Path) -> Text:
    return Text(f"page: {shown(page)}")


def _numbers(text: str) -> tuple[int, ...]:
    parts = choices(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batches {text!r} is not a list of sizes", hint="--batches 1,3,8")
    return tuple(int(part) for part in parts)
