"""What deployment files need to know of a bundle. Data only, read from an opened bundle.

Everything rendered derives from these records and from the options, so the same bundle and the same
options give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmprod.bundle import Bundle
from mmprod.bundle.files import INDEX
from mmprod.bundle.proof import Verdict
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import sha256_file


@dataclass(frozen=True)
class GraphFile:
    """One ONNX graph: its file and those with its weights, as paths in the bundle with SHA-256."""

    graph: str
    precision: str
    files: Mapping[str, str]
    bytes: int
    parity: str
    """pass, fail or not run; "" where nothing says anything about exactly these files."""

    @property
    def main(self) -> str:
        return next(path for path in self.files if path.endswith(".onnx"))


@dataclass(frozen=True)
class EngineFile:
    """One TensorRT plan, and what it was built with and for."""

    graph: str
    precision: str
    flavour: str
    version: str
    target: str
    path: str
    sha256: str
    bytes: int
    parity: str


@dataclass(frozen=True)
class Facts:
    """A bundle as deployment sees it. digest: SHA-256 of its bundle.json, which lists all others.

    tokenizer: path and SHA-256.
    """

    name: str
    digest: str
    signed: bool
    specs: Mapping[str, GraphSpec]
    graphs: tuple[GraphFile, ...]
    engines: tuple[EngineFile, ...] = ()
    tokenizer: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """The head of the digest: fits a Kubernetes label, whose values end at 63 characters."""
        return self.digest[:16]

    def precisions(self) -> list[str]:
        return sorted({graph.precision for graph in self.graphs})

    def of_precision(self, precision: str) -> tuple[GraphFile, ...]:
        """Graphs in this precision, in the order of the graph table."""
        found = {g.graph: g for g in self.graphs if g.precision == precision}
        return tuple(found[name] for name in self.specs if name in found)


def read_facts(bundle: Bundle, rows: Iterable[Verdict]) -> Facts:
    """The facts of an opened bundle; `rows`: of its parity report, those that stand."""
    hashes = {a.path: a.sha256 for a in bundle.artefacts()}
    verdicts: dict[str, str] = {}
    for row in rows:
        current = all(hashes.get(path) == digest for path, digest in row["sha256"].items())
        for path in row["sha256"] if current else ():
            # A graph is also named in the row of the engine made of it; the file's own row counts,
            # the first of them as for `mmprod serve`.
            if row["leg"] == ("torch-ort" if path.startswith("onnx/") else "torch-engine"):
                verdicts.setdefault(path, row["status"])
    weights = bundle.artefacts(role="onnx-data")
    graphs = []
    for artefact in bundle.artefacts(role="onnx"):
        beside = [
            w for w in weights if (w.graph, w.precision) == (artefact.graph, artefact.precision)
        ]
        every = [artefact, *beside]
        graphs.append(
            GraphFile(
                artefact.graph,
                artefact.precision,
                {a.path: a.sha256 for a in every},
                sum(a.bytes for a in every),
                verdicts.get(artefact.path, ""),
            )
        )
    tokenizers = bundle.artefacts(role="tokenizer")
    return Facts(
        name=bundle.name,
        digest=sha256_file(bundle.root / INDEX),
        signed=bundle.signed,
        specs=bundle.specs,
        graphs=tuple(graphs),
        engines=_engines(bundle, hashes, verdicts),
        tokenizer=(tokenizers[0].path, tokenizers[0].sha256) if tokenizers else None,
    )


def _engines(
    bundle: Bundle, hashes: Mapping[str, str], verdicts: Mapping[str, str]
) -> tuple[EngineFile, ...]:
    """The engines whose record is of the file that lies there now, by path."""
    found = []
    for record in bundle.summaries.get("engines") or ():
        if hashes.get(record["path"]) != record["sha256"]:
            continue
        found.append(
            EngineFile(
                graph=record["graph"],
                precision=record["precision"],
                flavour=record["flavour"],
                version=record["version"],
                target=record["target"],
                path=record["path"],
                sha256=record["sha256"],
                bytes=int(record["bytes"]),
                parity=verdicts.get(record["path"], ""),
            )
        )
    return tuple(sorted(found, key=lambda engine: engine.path))
