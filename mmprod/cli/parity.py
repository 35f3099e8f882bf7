"""`mmprod parity`: does every graph and engine of a bundle still answer like PyTorch?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmprod.cli.command import BundleArg, choices, command, group
from mmprod.cli.output import Output, Table, Text
from mmprod.cli.progress import parity_tick, progress
from mmprod.cli.source import torch_runners
from mmprod.cli.verdicts import parity_data, parity_views, require_engines, require_ok
from mmprod.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from mmprod.graphs.runner import Runner
    from mmprod.graphs.spec import GraphSpec
    from mmprod.parity.trials import Trial

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
) -> None:
    """Check everything and write reports/parity.md into the bundle; exit 5 when it fails."""
    from mmprod.bundle import open_bundle
    from mmprod.parity.run import run_parity

    sizes = _numbers(batches)
    opened = open_bundle(bundle)
    with progress(out, parity_tick) as on_event:
        report = run_parity(
            opened,
            reference=_live(against),
            precisions=choices(precision) or None,
            batches=sizes,
            seeds=seeds,
            on_event=on_event,
        )
    out.result(parity_data(report), *parity_views(report))
    require_ok(report, opened.root)
    if need_engines:
        require_engines(report)


@command(app, "selftest")
def selftest(out: Output, bundle: BundleArg) -> None:
    """On the device, without torch: run every graph and engine on the stored reference cases.

    Demands the engines built for this device: exit 3 when there is none or it cannot run them, 5
    when an answer is wrong.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.run import run_parity

    opened = open_bundle(bundle)
    with progress(out, parity_tick) as on_event:
        report = run_parity(opened, on_event=on_event)
    out.result(parity_data(report), *parity_views(report))
    require_ok(report, opened.root)
    require_engines(report)


@command(app, "sabotage")
def sabotage(
    out: Output,
    bundle: BundleArg,
    graphs: Annotated[
        str, typer.Option("--graph", metavar="GRAPH,...", help="Graphs to damage; all.")
    ] = "",
    precision: Annotated[str, typer.Option(help="Whose graphs.")] = "fp32",
) -> None:
    """Damage copies of the graphs in four ways: parity must notice each. Exit 5 if it does not."""
    from mmprod.bundle import open_bundle
    from mmprod.parity.trials import run_trials

    opened = open_bundle(bundle)
    unknown = [name for name in choices(graphs) if name not in opened.specs]
    if unknown:
        known = ", ".join(opened.specs)
        raise ConfigError(f"no graph is called {unknown[0]}", hint=f"graphs: {known}")

    def note(row: Trial) -> None:
        out.note(f"{row.graph} {row.kind}: {row.verdict}")

    rows = run_trials(opened, graphs=choices(graphs) or None, precision=precision, on_row=note)
    table = [(r.graph, r.precision, r.damage, r.verdict, "ok" if r.ok else "fail") for r in rows]
    missed = [row for row in rows if not row.ok]
    data = {"ok": not missed, "trials": [vars(row) | {"ok": row.ok} for row in rows]}
    columns = ("graph", "precision", "damage", "parity said", "as it must")
    summary = f"{len(rows)} trials, {len(missed)} wrong verdicts"
    out.result(data, Table("", columns, table), Text(summary))
    if missed:
        raise ParityFailed(
            f"parity gave the wrong verdict on {missed[0].graph}: {missed[0].damage}",
            hint="the stored reference cases are too weak or damaged: export the run again",
        )


def _live(run: Path | None) -> Callable[[GraphSpec], Runner] | None:
    """PyTorch's runner of each graph of a run; None without a run."""
    if run is None:
        return None
    from mmprod.checkpoint import open_run

    runners = torch_runners(open_run(run))
    return lambda spec: runners(spec.name)


def _numbers(text: str) -> tuple[int, ...]:
    parts = choices(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batches {text!r} is not a list of sizes", hint="--batches 1,3,8")
    return tuple(int(part) for part in parts)
