"""`mmprod parity explain`: bisect one graph, name the cause, and say what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.bisect import LIMITS, Bisection, bisect
from mmprod.parity.cases import Case, stored_cases
from mmprod.parity.causes import CURABLE, Cause, find_cause
from mmprod.parity.surgery import OUTSIDE

SHARED = {
    "text_to_image": ("fusion_step", "codec_decode"),
    "image_to_text": ("codec_encode", "fusion_step"),
    "joint": ("fusion_step", "codec_decode"),
    "edit": ("codec_encode", "fusion_step", "codec_decode"),
}
"""The plain graphs of whose blocks a sampler is made, in the order in which it runs them."""

WITH_ISLANDS = ("fp16", "bf16")
"""Precisions that the exporter can mix with fp32, module by module."""


@dataclass(frozen=True)
class Explanation:
    """What was found in one graph. `cause` None: all blocks are within their limits."""

    graph: str
    precision: str
    reference: str
    bisection: Bisection
    cause: Cause | None

    @property
    def block(self) -> str:
        return self.bisection.first.block if self.bisection.first else ""

    @property
    def islands(self) -> tuple[str, ...]:
        """Module paths to keep in fp32, where that helps."""
        curable = self.cause is not None and self.cause.kind in CURABLE
        possible = self.precision in WITH_ISLANDS and self.block != OUTSIDE
        return (self.block,) if curable and possible else ()

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {
                "block": row.block,
                "error": row.error if row.error < float("inf") else "not finite",
                "limit": row.limit,
                "ok": row.ok,
                "node": row.node,
            }
            for row in self.bisection.blocks
        ]
        return {
            "graph": self.graph,
            "precision": self.precision,
            "reference": self.reference,
            "blocks": rows,
            "block": self.block or None,
            "cause": self.cause.kind if self.cause else None,
            "detail": self.cause.text if self.cause else None,
            "islands": list(self.islands),
        }


def plain_graphs(bundle: Bundle, graph: str) -> tuple[str, ...]:
    """The graphs to look into: the graph itself, or those a sampler is made of. Raises
    ConfigError.
    """
    if graph not in bundle.specs:
        known = ", ".join(bundle.specs)
        raise ConfigError(f"no graph is called {graph}", hint=f"graphs: {known}")
    return SHARED[graph] if bundle.specs[graph].loop_steps else (graph,)


def explain(
    bundle: Bundle, graph: str, precision: str, reference: Path | None = None
) -> Explanation:
    """Find the first block of a plain graph that leaves its reference.

    `reference`: the same graph in fp32, freshly exported; None: the bundle's own fp32 graph, which
    says nothing of a graph in fp32. Raises ConfigError for what was not exported, IntegrityError
    for files that differ from the manifest or do not run.
    """
    if precision not in LIMITS:
        raise ConfigError(
            f"no limits for blocks in {precision!r}", hint=f"choose from {', '.join(LIMITS)}"
        )
    if reference is None and precision == "fp32":
        raise ConfigError(
            "an fp32 graph is explained against a fresh export of its run",
            hint=f"mmprod parity explain BUNDLE --graph {graph} --against RUN",
        )
    suspect = find_graph(bundle, graph, precision)
    source = "a fresh export" if reference else "the bundle's own fp32 graph"
    good = reference or find_graph(bundle, graph, "fp32")
    found = bisect(good, suspect, cases_of(bundle, bundle.specs[graph]), precision)
    cause = find_cause(found, good, suspect, precision) if found.first else None
    return Explanation(graph, precision, source, found, cause)


def cases_of(bundle: Bundle, spec: GraphSpec) -> list[Case]:
    """The stored cases of a graph, of which there must be some. Raises as `explain` does."""
    stored = bundle.artefacts(role="reference", graph=spec.name)
    bundle.verify(stored)
    cases = [case for artefact in stored for case in stored_cases(bundle.path(artefact), spec)]
    if not cases:
        raise ConfigError(f"{spec.name} has no stored cases", hint="mmprod export RUN writes them")
    return cases


def find_graph(bundle: Bundle, graph: str, precision: str) -> Path:
    """The file of a graph, hashed anew. Raises as `explain` does."""
    files = bundle.artefacts(role="onnx", graph=graph, precision=precision)
    if not files:
        raise ConfigError(
            f"{graph} was not exported in {precision}",
            hint=f"mmprod export RUN --precision {precision}",
        )
    beside = bundle.artefacts(role="onnx-data", graph=graph, precision=precision)
    bundle.verify([*files, *beside])
    return bundle.path(files[0])
