"""The verdicts of a comparison: one `Row` per leg, graph, precision and target, and the
`ParityReport` of all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmprod.manifest import FileEntry, sha256_bytes
from mmprod.parity.compare import Place
from mmprod.parity.heat import Heat
from mmprod.parity.limits import Check, limits_table

FORMAT = 1

Leg = Literal["torch-ort", "torch-engine"]
Status = Literal["pass", "fail", "not run"]


@dataclass(frozen=True)
class Output:
    """Measurements of one output over all cases of a row, and the figures held against limits."""

    name: str
    role: str
    figures: dict[str, float]
    checks: tuple[Check, ...]
    first: Place | None
    worst: Place | None
    heat: Heat | None = field(default=None, compare=False, repr=False)
    """Where it differs, for the page; it is kept in a file of arrays, not in the report."""

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        places = {
            key: asdict(p) if p else None
            for key, p in (("first", self.first), ("worst", self.worst))
        }
        checks = [check.as_dict() for check in self.checks]
        return {
            "name": self.name,
            "role": self.role,
            "figures": self.figures,
            "checks": checks,
            **places,
        }


@dataclass(frozen=True)
class Subject:
    """What a row speaks of. `target`: the engine's flavour and device, e.g. `rtx-sm86`; "" for
    ONNX Runtime.

    `files`: what was compared, with the hashes it had then; a verdict holds for these files only.
    """

    leg: Leg
    graph: str
    precision: str
    target: str = ""
    files: tuple[FileEntry, ...] = ()

    def __str__(self) -> str:
        return " ".join(
            part for part in (self.leg, self.graph, self.precision, self.target) if part
        )


@dataclass(frozen=True)
class Row:
    """One verdict. `reason` is one line and never empty; `advice` says what to do next ("" for a
    pass).
    """

    subject: Subject
    status: Status
    reason: str
    advice: str = ""
    backend: str = ""
    cases: int = 0
    samples: int = 0
    seconds: float = 0.0
    outputs: tuple[Output, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "leg": self.subject.leg,
            "graph": self.subject.graph,
            "precision": self.subject.precision,
            "target": self.subject.target,
            "status": self.status,
            "reason": self.reason,
            "advice": self.advice,
            "files": [entry.as_dict() for entry in self.subject.files],
            "backend": self.backend,
            "cases": self.cases,
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "outputs": [output.as_dict() for output in self.outputs],
        }


@dataclass(frozen=True)
class Task:
    """What a use of the model sees beside the tensors: reported for each backend, not judged, since
    a task's figure moves with every moved draw, to either side.
    """

    metric: str
    unit: Literal["dB", "share"]
    backend: str
    """`PyTorch`, or the precision of the graphs"""
    value: float
    samples: int


@dataclass(frozen=True)
class ParityReport:
    """All rows, in the order of the catalog, and how they came about."""

    bundle: str
    reference: str
    """What the graphs were compared with, e.g. `stored outputs` or the backend of the live runner.
    """
    batches: tuple[int, ...]
    seeds: int
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...] = ()

    @property
    def ok(self) -> bool:
        """Something was compared and nothing failed."""
        return self.count("pass") > 0 and self.count("fail") == 0

    def count(self, status: Status) -> int:
        return sum(row.status == status for row in self.rows)

    def select(self, *, leg: Leg | None = None, status: Status | None = None) -> Sequence[Row]:
        """The rows of a leg, of a status, or both."""
        return [
            row
            for row in self.rows
            if leg in (None, row.subject.leg) and status in (None, row.status)
        ]

    def summary(self) -> dict[str, Any]:
        """The short form kept in bundle.json: counts, and per row the verdict with the hashes it
        holds for.
        """
        keys = ("leg", "graph", "precision", "target", "status", "reason")
        rows = [
            {
                **{key: full[key] for key in keys},
                "sha256": {entry["path"]: entry["sha256"] for entry in full["files"]},
            }
            for full in (row.as_dict() for row in self.rows)
        ]
        return {**self._head(), "rows": rows}

    def as_dict(self) -> dict[str, Any]:
        """The whole as strict JSON data (no NaN, no infinity)."""
        rows = [row.as_dict() for row in self.rows]
        return {
            "format": FORMAT,
            "bundle": self.bundle,
            **self._head(),
            "limits": limits_table(),
            "rows": rows,
            "tasks": [asdict(task) for task in self.tasks],
        }

    def _head(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "pass": self.count("pass"),
            "fail": self.count("fail"),
            "not run": self.count("not run"),
            "reference": self.reference,
            "batches": list(self.batches),
            "seeds": self.seeds,
            "limits_sha256": limits_sha256(),
        }


def limits_sha256() -> str:
    """SHA-256 of all limits: under which a verdict was given is part of it."""
    return sha256_bytes(json.dumps(limits_table(), sort_keys=True).encode())
