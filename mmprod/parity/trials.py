"""Would parity notice? Damages copies of a bundle's graphs and sees whether the check fails, as it
must.

Runs without torch, on the stored cases. The undamaged copy comes first and must pass: a check that
always fails proves nothing either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.report import Row
from mmprod.parity.run import run_parity
from mmprod.parity.sabotage import KINDS, copy_graph, damage

MAY_VANISH = ("zero_row", "add_noise")
"""Damages to one weight among millions. Swapped rows are rows in use, and NaN spreads."""

_TOO_SMALL = ("no effect", "within limits")


@dataclass(frozen=True)
class Trial:
    """One trial. `kind` "none": the undamaged copy. `ok`: the verdict is the one that was due.

    `verdict`: pass or fail as parity judged; not run: the graph has nothing of that kind to damage;
    no effect: no output of the stored cases changed, as can happen with ids; within limits: a
    sampler of reduced precision moved no more than rounding may move it, so this damage cannot be
    told from rounding. Both are all right for the gentle damages alone (`MAY_VANISH`).
    """

    graph: str
    precision: str
    kind: str
    damage: str
    verdict: str
    reason: str

    @property
    def ok(self) -> bool:
        if self.kind == "none":
            return self.verdict == "pass"
        gentle = self.verdict in _TOO_SMALL and self.kind in MAY_VANISH
        return gentle or self.verdict in ("fail", "not run")


def run_trials(
    bundle: Bundle,
    *,
    graphs: Sequence[str] | None = None,
    precision: str = "fp32",
    on_row: Callable[[Trial], None] | None = None,
) -> tuple[Trial, ...]:
    """Every damage to every graph (or to `graphs`), one at a time, in a temporary folder.

    Raises ConfigError for a graph that was not exported in `precision`.
    """
    exported = {artefact.graph for artefact in bundle.artefacts(role="onnx", precision=precision)}
    chosen = graphs if graphs is not None else [name for name in bundle.specs if name in exported]
    if not chosen:
        raise ConfigError(f"no graph was exported in {precision}", hint="mmprod export RUN")
    rows: list[Trial] = []
    for graph in chosen:
        for row in _trials(bundle, graph, precision):
            rows.append(row)
            if on_row:
                on_row(row)
    return tuple(rows)


def _trials(bundle: Bundle, graph: str, precision: str) -> Iterator[Trial]:
    undamaged: Row | None = None
    for kind in ("none", *KINDS):
        with tempfile.TemporaryDirectory(prefix="mmprod-sabotage-") as folder:
            copy = copy_graph(bundle, graph, precision, Path(folder) / "bundle")
            text = "undamaged"
            if kind != "none":
                try:
                    done = damage(copy, kind, graph, precision)
                except ConfigError as error:
                    yield Trial(graph, precision, kind, "-", "not run", error.message)
                    continue
                text = f"{done.weight}: {done.text}"
            row = _check(copy, graph, precision)
            undamaged = undamaged or row
            blurred = precision != "fp32" and bool(bundle.specs[graph].loop_steps)
            verdict, reason = _verdict(row, undamaged, blurred)
            yield Trial(graph, precision, kind, text, verdict, reason)


def _verdict(row: Row, undamaged: Row, blurred: bool) -> tuple[str, str]:
    """`blurred`: rounding moves some draws of the undamaged graph, so its limits are wide."""
    figures = [output.figures for output in row.outputs]
    same = figures == [output.figures for output in undamaged.outputs]
    if row is not undamaged and row.status == "pass" and same:
        return "no effect", "the outputs of the stored cases did not change"
    if row is not undamaged and row.status == "pass" and blurred:
        return "within limits", f"too small to be told from rounding; {row.reason}"
    return row.status, row.reason


def _check(bundle: Bundle, graph: str, precision: str) -> Row:
    report = run_parity(bundle, precisions=(precision,))
    return next(row for row in report.select(leg="torch-ort") if row.subject.graph == graph)
