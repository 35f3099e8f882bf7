"""What an earlier report still says after a run over a part of the bundle.

A verdict holds for the files it was made on. So an earlier row stays when this run did not touch
its subject and its files are unchanged; an artefact that no row speaks of gets a row that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmprod.bundle import Bundle
from mmprod.manifest import FileEntry, read_json
from mmprod.parity.candidates import target_of
from mmprod.parity.compare import Place
from mmprod.parity.limits import PRECISIONS, Check, limits_table
from mmprod.parity.report import FORMAT, Output, Row, Subject

logger = logging.getLogger(__name__)

REPORT = "reports/parity.json"
_LEGS = {"onnx": "torch-ort", "engine": "torch-engine"}
_MARK = " [earlier run: "
_NO_VERDICT = "no verdict for this file"


def merge(bundle: Bundle, rows: Sequence[Row], asked: Sequence[str]) -> tuple[Row, ...]:
    """These rows, those of earlier runs that still hold, and one for each artefact without any.

    In the order of the catalog: ONNX Runtime before engines, precisions as asked, then the others.
    Raises IntegrityError when the earlier report differs from the manifest.
    """
    present = {artefact.entry for artefact in bundle.artefacts()}
    judged = {_key(row.subject) for row in rows}
    earlier = [row for row in _earlier(bundle) if _key(row.subject) not in judged]
    kept = [r for r in earlier if r.subject.files and present.issuperset(r.subject.files)]
    stale = {entry.path for row in earlier if row not in kept for entry in row.subject.files}
    merged = [*rows, *kept]
    merged += _without_verdict(bundle, merged, stale)
    others = {row.subject.precision for row in merged}
    precisions = list(dict.fromkeys((*asked, *PRECISIONS, *sorted(others))))
    graphs, legs = list(bundle.specs), list(_LEGS.values())
    return tuple(
        sorted(
            merged,
            key=lambda row: (
                graphs.index(row.subject.graph),
                legs.index(row.subject.leg),
                precisions.index(row.subject.precision),
                row.subject.target,
            ),
        )
    )


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a row (`Row.as_dict`) was not made by the report's own run, but left by `merge`."""
    return _MARK in row["reason"] or row["reason"].startswith(_NO_VERDICT)


def _key(subject: Subject) -> tuple[str, ...]:
    return subject.leg, subject.graph, subject.precision, subject.target


def _without_verdict(bundle: Bundle, rows: Sequence[Row], stale: set[str]) -> list[Row]:
    """A row for every graph and engine that is in no row."""
    spoken = {_key(row.subject) for row in rows}
    found = []
    for artefact in (a for a in bundle.artefacts() if a.role in _LEGS):
        engine = artefact.role == "engine"
        subject = Subject(
            "torch-engine" if engine else "torch-ort",
            artefact.graph,
            artefact.precision,
            target_of(artefact) if engine else "",
            (artefact.entry,),
        )
        if _key(subject) not in spoken:
            changed = ": it changed after its comparison" if artefact.path in stale else ""
            reason = f"{_NO_VERDICT}{changed}"
            found.append(Row(subject, "not run", reason, "mmprod parity run BUNDLE"))
    return found


def _earlier(bundle: Bundle) -> list[Row]:
    """The rows of the report in the bundle, marked with what they were compared with; none when
    it was judged by other limits.
    """
    listed = [a for a in bundle.artefacts(role="report") if a.path == REPORT]
    bundle.verify(listed)
    if not listed:
        return []
    data = read_json(bundle.path(listed[0]), hint="mmprod bundle verify BUNDLE")
    if data.get("format") != FORMAT or data["limits"] != limits_table():
        logger.warning("the earlier parity report has other limits; its verdicts are dropped")
        return []
    mark = f"{_MARK}{data['reference']}]"
    rows = [_row(raw) for raw in data["rows"]]
    return [r if _MARK in r.reason else replace(r, reason=r.reason + mark) for r in rows]


def _row(raw: Mapping[str, Any]) -> Row:
    """What `Row.as_dict` wrote."""
    files = tuple(FileEntry(**entry) for entry in raw["files"])
    subject = Subject(raw["leg"], raw["graph"], raw["precision"], raw["target"], files)
    same = ("status", "reason", "advice", "backend", "cases", "samples", "seconds")
    outputs = tuple(_output(output) for output in raw["outputs"])
    return Row(subject, **{key: raw[key] for key in same}, outputs=outputs)


def _output(raw: Mapping[str, Any]) -> Output:
    checks = tuple(
        Check(**{key: value for key, value in check.items() if key != "ok"})
        for check in raw["checks"]
    )
    first, worst = (_place(raw[key]) for key in ("first", "worst"))
    return Output(raw["name"], raw["role"], raw["figures"], checks, first, worst)


def _place(raw: Mapping[str, Any] | None) -> Place | None:
    return Place(**{**raw, "index": tuple(raw["index"])}) if raw else None
