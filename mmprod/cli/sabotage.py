"""`mmprod parity sabotage`: would the parity check notice?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mmprod.cli.command import BundleArg, choices
from mmprod.cli.output import Output, Table, Text
from mmprod.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from mmprod.parity.trials import Trial

COLUMNS = ("fault", "kind", "caught", "by", "in", "unchanged or within rounding", "right block")


def sabotage(
    out: Output,
    bundle: BundleArg,
    graphs: Annotated[
        str, typer.Option("--graph", metavar="GRAPH,...", help="Graphs to damage; all.")
    ] = "",
    precision: Annotated[str, typer.Option(help="Whose graphs.")] = "fp32",
    faults: Annotated[
        str, typer.Option("--fault", metavar="FAULT,...", help="Faults to try; the whole suite.")
    ] = "",
) -> None:
    """Damage copies of the graphs and files in many ways: parity must notice. Exit 5 if not.

    Also says how often `parity explain` then names the block that was damaged.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.faults import SUITE, find_fault
    from mmprod.parity.trials import caught_faults, hidden_faults, placed_faults, run_trials

    opened = open_bundle(bundle)
    unknown = [name for name in choices(graphs) if name not in opened.specs]
    if unknown:
        known = ", ".join(opened.specs)
        raise ConfigError(f"no graph is called {unknown[0]}", hint=f"graphs: {known}")
    suite = tuple(find_fault(name) for name in choices(faults)) or SUITE

    def note(row: Trial) -> None:
        out.note(f"{row.graph} {row.kind}: {row.verdict} {row.caught_by}".rstrip())

    rows = run_trials(
        opened, graphs=choices(graphs) or None, precision=precision, suite=suite, on_row=note
    )
    caught = caught_faults(rows)
    wrong = [row for row in rows if not row.ok]
    kinds = {fault.name: fault.kind for fault in suite}
    right, asked = placed_faults(rows)
    hidden = hidden_faults(rows, every_graph=not choices(graphs))
    missed = [name for name, found in caught.items() if not found and name not in hidden]
    data = {
        "ok": not wrong and not missed,
        "caught": caught,
        "hidden": hidden,
        "no target": [name for name in kinds if name not in caught],
        "right blocks": right,
        "blocks asked": asked,
        "trials": [vars(row) | {"ok": row.ok} for row in rows],
    }
    words = {name: "ok" if found else "fail" for name, found in caught.items()}
    words |= dict.fromkeys(hidden, "hidden")
    table = [_line(name, kinds[name], word, rows) for name, word in words.items()]
    clean = [row for row in rows if row.kind == "none"]
    summary = (
        f"{sum(caught.values())} of {len(caught)} faults caught in {len(rows)} trials; "
        f"{sum(row.ok for row in clean)} of {len(clean)} undamaged graphs pass\n"
        + (f"unchanged or within rounding wherever tried: {', '.join(hidden)}\n" if hidden else "")
        + f"explain names the right block in {right} of {asked} noticed numeric faults"
    )
    out.result(data, Table("", COLUMNS, table), Text(summary))
    if wrong:
        raise ParityFailed(
            f"parity gave the wrong verdict on {wrong[0].graph}: {wrong[0].damage}",
            hint="the stored reference cases are too weak or damaged: export the run again",
        )
    if missed:
        raise ParityFailed(
            f"no graph showed the fault {missed[0]}",
            hint="the stored reference cases are too weak: export the run again",
        )


def _line(name: str, kind: str, caught: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    """One fault in all graphs."""
    from mmprod.parity.trials import placed_faults

    rows = [row for row in trials if row.kind == name]
    right, asked = placed_faults(rows)
    return (
        name,
        kind,
        caught,
        ", ".join(sorted({row.caught_by for row in rows} - {""})) or "-",
        ", ".join(row.graph for row in rows if row.verdict == "fail") or "-",
        ", ".join(row.graph for row in rows if row.excused) or "-",
        f"{right} of {asked}" if asked else "-",
    )
