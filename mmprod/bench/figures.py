"""What a bench says: one `Row` per subject and batch, and the `BenchReport` of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mmprod.bench.subjects import Subject

FORMAT = 1
METHOD = (
    "Each subject runs in a process of its own with the same number of threads; one runs at a "
    "time. The runs of a batch are split into rounds: in each round every subject takes its turn, "
    "another one first, after one untimed call, so that a drift of the machine meets all alike. "
    "Graph: arrays to arrays. End to end: captions and PNG files to captions and PNG files, with "
    "tokenizing, drawing the noise, and coding the pictures. Peak memory: resident memory of the "
    "process with its libraries, batches in ascending order."
)

Status = Literal["measured", "void", "not run"]
PEERS = {
    "torch eager": ("torch eager", "fp32"),
    "torch compile": ("torch compile", "fp32"),
    "host loop": ("host loop", ""),
    "fp32 graph": ("onnxruntime", "fp32"),
}
"""What a graph or engine is compared with: kind and precision, "" for the same precision."""


@dataclass(frozen=True)
class Timing:
    """Figures of some runs; quantiles are interpolated, so p99 of few runs is near the slowest."""

    runs: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float

    @classmethod
    def of(cls, seconds: Sequence[float], batch: int) -> Timing:
        times = np.asarray(seconds) * 1e3
        p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
        mean = float(times.mean())
        return cls(
            len(times), float(times.min()), mean, p50, p90, p99, samples_per_s=1e3 * batch / mean
        )


@dataclass(frozen=True)
class Row:
    """Figures of a subject at one batch, or why there are none.

    `ready_s`: from the start of loading to the first answer; `end_to_end` None: the graph has no
    text or picture at either side.
    """

    subject: Subject
    batch: int
    status: Status
    reason: str = ""
    backend: str = ""
    ready_s: float = 0.0
    graph: Timing | None = None
    end_to_end: Timing | None = None
    peak_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "graph": self.subject.graph,
            "subject": self.subject.kind,
            "precision": self.subject.precision,
            "target": self.subject.target,
            "batch": self.batch,
            "status": self.status,
            "reason": self.reason,
            "files": dict(self.subject.files),
            "backend": self.backend,
            "ready_s": round(self.ready_s, 3),
            "peak_bytes": self.peak_bytes,
            "graph_only": _rounded(self.graph),
            "end_to_end": _rounded(self.end_to_end),
        }


@dataclass(frozen=True)
class BenchReport:
    """All rows with the machine and the settings they hold for."""

    bundle: str
    bundle_sha256: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]

    def count(self, status: Status) -> int:
        return sum(row.status == status for row in self.rows)

    def summary(self) -> dict[str, Any]:
        """The short form that a bundle can keep: medians of what was measured, with the hashes they
        hold for.
        """
        kept = ("graph", "subject", "precision", "target", "batch", "peak_bytes")
        rows = [
            {
                **{key: row.as_dict()[key] for key in kept},
                "p50_ms": round(row.graph.p50_ms, 4),
                "samples_per_s": round(row.graph.samples_per_s, 4),
                "sha256": dict(row.subject.files),
            }
            for row in self.rows
            if row.graph
        ]
        return {"machine": dict(self.machine), "settings": dict(self.settings), "rows": rows}

    def as_dict(self) -> dict[str, Any]:
        """The whole as strict JSON data."""
        return {
            "format": FORMAT,
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "method": METHOD,
            "rows": [
                {**row.as_dict(), "times_as_fast": times_as_fast(row, self.rows)}
                for row in self.rows
            ],
        }


def times_as_fast(row: Row, rows: Sequence[Row]) -> dict[str, float]:
    """How many times as fast a graph or engine is as its peers of the same batch: their median over
    its own, arrays to arrays. Empty for the peers themselves, and without figures.
    """
    own = row.subject
    if row.graph is None or own.kind not in ("onnxruntime", "engine"):
        return {}
    found = {}
    for name, (kind, precision) in PEERS.items():
        wanted = (own.graph, kind, precision or own.precision)
        for other in rows:
            peer = other.subject
            fits = (peer.graph, peer.kind, peer.precision) == wanted and other.batch == row.batch
            if fits and other.graph and other is not row:
                found[name] = round(other.graph.p50_ms / row.graph.p50_ms, 3)
    return found


def _rounded(timing: Timing | None) -> dict[str, Any] | None:
    """With the digits that a clock has."""
    if timing is None:
        return None
    return {name: round(value, 4) for name, value in asdict(timing).items()}
