"""Would parity notice? Damages copies of a bundle's graphs and sees whether the check fails, as it
must.

Runs without torch, on the stored cases. The undamaged copy comes first and must pass: a check that
always fails proves nothing either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError, IntegrityError
from mmprod.parity.explain import explain
from mmprod.parity.faults import MAY_VANISH, SUITE, Fault, inject
from mmprod.parity.report import Row
from mmprod.parity.run import Comparison
from mmprod.parity.sabotage import Damage, copy_graph


@dataclass(frozen=True)
class Trial:
    """One trial. `kind` "none": the undamaged copy. `ok`: the verdict is the one that was due.

    `verdict`: pass or fail as parity judged; not run: the graph has no target for it; no effect: no
    output of the stored cases changed, as can happen with ids; within limits: something moved, and
    no more than rounding may move it. Both are all right for the gentle faults alone
    (`MAY_VANISH`), and no effect for samplers, whose draws may stay what they were. That a fault
    is noticed somewhere is asked of the whole bundle (`caught_faults`), of gentle ones in fp32.
    """

    graph: str
    precision: str
    kind: str
    damage: str
    verdict: str
    reason: str
    caught_by: str = ""
    """What noticed it: hash (the file is not the one listed), interface (the runner refuses the
    graph), values (NaN, Inf, ids out of range), overflow (the audit of half precision) or limits.
    """

    excused: bool = False
    """Whether it may get through here, as `verdict` says."""

    block: str = ""
    """Where a numeric fault was put, a block of a plain graph. `blamed`: the first block over its
    limit in `explain`'s eyes; both "" where it was not asked. `cause`: the kind it names.
    """
    blamed: str = ""
    cause: str = ""

    @property
    def ok(self) -> bool:
        if self.kind == "none":
            return self.verdict == "pass"
        return self.excused or self.verdict in ("fail", "not run")


def run_trials(
    bundle: Bundle,
    *,
    graphs: Sequence[str] | None = None,
    precision: str = "fp32",
    suite: Sequence[Fault] = SUITE,
    on_row: Callable[[Trial], None] | None = None,
) -> tuple[Trial, ...]:
    """Every fault of the suite in every graph (or in `graphs`), one at a time, in a temporary
    folder.

    Raises ConfigError for a graph that was not exported in `precision`.
    """
    exported = {artefact.graph for artefact in bundle.artefacts(role="onnx", precision=precision)}
    chosen = graphs if graphs is not None else [name for name in bundle.specs if name in exported]
    if not chosen:
        raise ConfigError(f"no graph was exported in {precision}", hint="mmprod export RUN")
    rows: list[Trial] = []
    for graph in chosen:
        for row in _trials(bundle, graph, precision, suite):
            rows.append(row)
            if on_row:
                on_row(row)
    return tuple(rows)


def caught_faults(rows: Sequence[Trial]) -> dict[str, bool]:
    """Per fault that had a target: was it noticed somewhere, and nowhere wrongly let through?"""
    found: dict[str, bool] = {}
    for row in rows:
        if row.kind != "none" and row.verdict != "not run":
            found.setdefault(row.kind, False)
    return {
        kind: any(r.verdict == "fail" for r in rows if r.kind == kind)
        and all(r.ok for r in rows if r.kind == kind)
        for kind in found
    }


def hidden_faults(rows: Sequence[Trial], every_graph: bool = True) -> tuple[str, ...]:
    """The faults that were rightly noticed nowhere: gentle ones in a reduced precision, which its
    rounding may hide, and any that has no effect in the graphs that were tried, if these are not
    all.
    """
    hidden: list[str] = []
    for kind, caught in caught_faults(rows).items():
        tried = [row for row in rows if row.kind == kind and row.verdict != "not run"]
        may = not every_graph or (kind in MAY_VANISH and tried[0].precision != "fp32")
        if not caught and may and all(row.excused for row in tried):
            hidden.append(kind)
    return tuple(hidden)


def placed_faults(rows: Sequence[Trial]) -> tuple[int, int]:
    """Of how many faults `explain` named the right block, and of how many it was asked."""
    asked = [row for row in rows if row.block]
    return sum(row.blamed == row.block for row in asked), len(asked)


def _trials(bundle: Bundle, graph: str, precision: str, suite: Sequence[Fault]) -> Iterator[Trial]:
    with tempfile.TemporaryDirectory(prefix="mmprod-sabotage-") as folder:
        copy = copy_graph(bundle, graph, precision, Path(folder) / "bundle")
        undamaged = _check(copy, graph, precision)
    yield Trial(graph, precision, "none", "undamaged", undamaged.status, undamaged.reason)
    for fault in suite:
        with tempfile.TemporaryDirectory(prefix="mmprod-sabotage-") as folder:
            copy = copy_graph(bundle, graph, precision, Path(folder) / "bundle")
            row, done = _trial(copy, fault, undamaged)
            yield _explained(bundle, copy, row, done) if done else row


def _explained(bundle: Bundle, copy: Bundle, row: Trial, done: Damage) -> Trial:
    """The row with what `explain` says of the fault, compared with the undamaged fp32 graph."""
    sound = bundle.artefacts(role="onnx", graph=row.graph, precision="fp32")
    if not sound or bundle.specs[row.graph].loop_steps:
        return row
    try:
        found = explain(_reopened(copy), row.graph, row.precision, bundle.path(sound[0]))
    except IntegrityError as error:
        return replace(row, block=done.block, blamed="-", cause=error.message)
    cause = found.cause.kind if found.cause else ""
    return replace(row, block=done.block, blamed=found.block or "-", cause=cause)


def _trial(copy: Bundle, fault: Fault, undamaged: Row) -> tuple[Trial, Damage | None]:
    """Do one fault to a copy, and see what notices it; the damage if it is numeric and noticed."""
    graph, precision = undamaged.subject.graph, undamaged.subject.precision
    try:
        done = inject(copy, fault, graph, precision)
    except ConfigError as error:
        return Trial(graph, precision, fault.name, "-", "not run", error.message), None
    text = f"{done.weight}: {done.text}"
    try:
        opened = _reopened(copy)
        opened.verify()
        row = _check(opened, graph, precision)
    except IntegrityError as error:
        reason = error.message.replace(f"{copy.root}/", "")
        return Trial(graph, precision, fault.name, text, "fail", reason, "hash"), None
    sampler = bool(copy.specs[graph].loop_steps)
    blurred = (precision != "fp32" and sampler) or fault.may_vanish
    verdict, reason = _verdict(row, undamaged, blurred)
    noticed = _noticed_by(row) if verdict == "fail" else ""
    gentle = verdict in ("no effect", "within limits") and fault.may_vanish
    excused = gentle or (verdict == "no effect" and sampler and fault.kind == "numeric")
    trial = Trial(graph, precision, fault.name, text, verdict, reason, noticed, excused)
    return trial, done if fault.kind == "numeric" and noticed else None


def _reopened(copy: Bundle) -> Bundle:
    """No signature is asked of a damaged copy: nobody signs it, and what is tested is parity."""
    return open_bundle(copy.root, trusted=())


def _noticed_by(row: Row) -> str:
    if any(not output.ok for output in row.outputs):
        return "limits"
    if "overflow" in row.reason:
        return "overflow"
    return "values" if row.cases else "interface"


def _verdict(row: Row, undamaged: Row, blurred: bool) -> tuple[str, str]:
    """`blurred`: rounding moves some draws of the undamaged graph, so its limits are wide."""
    figures = [output.figures for output in row.outputs]
    same = figures == [output.figures for output in undamaged.outputs]
    if row.status == "pass" and same:
        return "no effect", "the outputs of the stored cases did not change"
    if row.status == "pass" and blurred:
        return "within limits", f"too small to be told from rounding; {row.reason}"
    return row.status, row.reason


def _check(bundle: Bundle, graph: str, precision: str) -> Row:
    report = Comparison(bundle, precisions=(precision,)).compare()
    return next(row for row in report.select(leg="torch-ort") if row.subject.graph == graph)
