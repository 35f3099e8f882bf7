"""The smallest precision of each graph that passes parity: what `mmprod export --precision auto`
keeps.

Smallest in bytes of the file; among files within a hundredth of the smallest the fastest one, by
the seconds it took in ONNX Runtime over the compared cases: int8 and fp8 differ only by the lengths
of the names inside the file. `mixed` as large as fp16 has next to nothing in int8: fp16 it is.
fp32 always stays in the bundle: reports, `parity explain` and
compressed files are made with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmprod.bundle import Bundle
from mmprod.bundle.assignment import assign
from mmprod.errors import ParityFailed
from mmprod.parity.report import ParityReport, Row, Status

ALWAYS = "fp32"
NEAR = 1.01
"""Files up to so many times the smallest count as equally small."""


@dataclass(frozen=True)
class Option:
    """One graph in one precision. `ms`: mean time of a sample over the compared cases, with ONNX
    Runtime on this processor.
    """

    graph: str
    precision: str
    bytes: int
    ms: float
    status: Status
    reason: str
    chosen: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(report: ParityReport) -> list[Option]:
    """All options, the chosen one of each graph marked. Raises ParityFailed for a graph that passes
    in no precision.
    """
    options = [_option(row) for row in report.select(leg="torch-ort") if _was_compared(row)]
    chosen: dict[str, Option] = {}
    for graph in dict.fromkeys(option.graph for option in options):
        passing = [o for o in options if o.graph == graph and o.status == "pass"]
        if not passing:
            reasons = "; ".join(f"{o.precision}: {o.reason}" for o in options if o.graph == graph)
            raise ParityFailed(
                f"{graph} passes parity in no precision: {reasons}",
                hint="mmprod export RUN --precision fp32, then mmprod parity explain BUNDLE",
            )
        most = NEAR * min(option.bytes for option in passing)
        near = [option for option in passing if option.bytes <= most]
        if any(option.precision == "fp16" for option in near):  # `mixed` is the same or less exact
            near = [option for option in near if option.precision != "mixed"]
        chosen[graph] = min(near, key=lambda option: (option.ms, option.bytes))
    return [replace(option, chosen=option is chosen[option.graph]) for option in options]


def keep_chosen(bundle: Bundle, options: Sequence[Option]) -> None:
    """Take the other graphs out of the bundle, but for fp32, and note which is whose. The report of
    the bundle still speaks of them until the next comparison.
    """
    chosen = {option.graph: option.precision for option in options if option.chosen}
    with bundle.writing():
        for artefact in [*bundle.artefacts(role="onnx"), *bundle.artefacts(role="onnx-data")]:
            if not _stays(artefact.graph, artefact.precision, chosen):
                bundle.remove(bundle.path(artefact))
        assign(bundle, chosen)
        bundle.save()


def _stays(graph: str, precision: str, chosen: Mapping[str, str]) -> bool:
    return precision in (ALWAYS, chosen[graph])


def _was_compared(row: Row) -> bool:
    return bool(row.subject.files) and not row.subject.target


def _option(row: Row) -> Option:
    return Option(
        row.subject.graph,
        row.subject.precision,
        sum(entry.bytes for entry in row.subject.files),
        1000 * row.seconds / max(row.samples, 1),
        row.status,
        row.reason,
    )
