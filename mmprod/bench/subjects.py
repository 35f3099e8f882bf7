"""What is measured: every graph file and engine of a bundle, and what they are compared with.

A figure belongs to a file that parity passed. So each subject of a bundle carries the reason why
its figures would be void, "" where its files have a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mmprod.bundle import Artefact, Bundle
from mmprod.bundle.proof import Verdict, why_unproven
from mmprod.errors import ConfigError

Kind = Literal["onnxruntime", "engine", "torch eager", "torch compile", "host loop"]
PARTS = ("fusion_step", "codec_decode")
"""The graphs that a host loop over `text_to_image` calls."""
LOOPED = "text_to_image"
PEERS: Mapping[str, Kind] = {
    "eager": "torch eager",
    "compile": "torch compile",
    "loop": "host loop",
}
"""What a run makes possible to compare with, by a short name."""
LOOP_PRECISIONS = ("fp32", "fp16")
"""In the others a part is calibrated or rounded apart from the whole graph, so that a loop over
the parts draws other codes: it would never be held to compute the same."""


@dataclass(frozen=True)
class Subject:
    """One thing that can run a graph. files: SHA-256 by path, of all it reads.

    `paths`: the files it loads, by graph; `void`: why a figure of it would be worth nothing.
    """

    kind: Kind
    graph: str
    precision: str
    target: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)
    void: str = ""

    @property
    def name(self) -> str:
        """As rows and plots call it; unique within a graph."""
        return " ".join(part for part in (self.kind, self.precision, self.target) if part)


def find_subjects(
    bundle: Bundle,
    verdicts: Sequence[Verdict],
    graphs: Sequence[str] = (),
    precisions: Sequence[str] = (),
    run_files: Mapping[str, str] | None = None,
    peers: Sequence[str] = (),
) -> dict[str, list[Subject]]:
    """By graph, in the order of the catalog: ONNX Runtime, engines, PyTorch, host loops.

    `verdicts`: the rows of the bundle's parity report that stand (`parity.standing`). Empty
    `graphs` or `precisions` mean all that the bundle holds; `run_files`: the weights of the
    run to compare with, None for no run; `peers`: of `PEERS`, empty for all. Raises ConfigError for
    what the bundle does not hold, and for other names.
    """
    held = list(dict.fromkeys(a.graph for a in bundle.artefacts(role="onnx")))
    held.sort(key=list(bundle.specs).index)
    offered = sorted({a.precision for a in bundle.artefacts(role="onnx")})
    for option, asked, known in (
        ("--graph", graphs, held),
        ("--precision", precisions, offered),
        ("--peers", peers, list(PEERS)),
    ):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ConfigError(
                f"{bundle.root} holds nothing for {option} {unknown[0]}",
                hint=f"choose from {', '.join(known)}",
            )
    kinds = [PEERS[name] for name in peers or PEERS] if run_files is not None else []
    found = {}
    for graph in graphs or held:
        subjects = list(_of_bundle(bundle, verdicts, graph, precisions))
        subjects += [
            Subject(kind, graph, "fp32", files=run_files or {})
            for kind in kinds
            if kind != PEERS["loop"]
        ]
        if graph == LOOPED and PEERS["loop"] in kinds:
            subjects += _host_loops(bundle, verdicts, subjects)
        if subjects:
            found[graph] = subjects
    if not found:
        raise ConfigError(
            f"{bundle.root} holds none of these graphs in {', '.join(precisions)}",
            hint="leave out --graph or --precision, or export the run again with --precision",
        )
    return found


def _of_bundle(
    bundle: Bundle, verdicts: Sequence[Verdict], graph: str, precisions: Sequence[str]
) -> Iterator[Subject]:
    for artefact in bundle.artefacts(role="onnx", graph=graph):
        if not precisions or artefact.precision in precisions:
            yield _onnx(bundle, verdicts, artefact)
    for artefact in bundle.artefacts(role="engine", graph=graph):
        if not precisions or artefact.precision in precisions:
            subject = Subject(
                "engine",
                graph,
                artefact.precision,
                # A plan lies in a folder named after flavour and device.
                Path(artefact.path).parent.name,
                {artefact.path: artefact.sha256},
                {graph: bundle.path(artefact)},
            )
            yield replace(subject, void=_void(verdicts, "torch-engine", subject))


def _onnx(bundle: Bundle, verdicts: Sequence[Verdict], artefact: Artefact) -> Subject:
    graph, precision = artefact.graph, artefact.precision
    files = [artefact, *bundle.artefacts(role="onnx-data", graph=graph, precision=precision)]
    subject = Subject(
        "onnxruntime",
        graph,
        precision,
        files={a.path: a.sha256 for a in files},
        paths={graph: bundle.path(artefact)},
    )
    return replace(subject, void=_void(verdicts, "torch-ort", subject))


def _host_loops(
    bundle: Bundle, verdicts: Sequence[Verdict], found: Sequence[Subject]
) -> list[Subject]:
    """A loop on the host in fp32 and fp16, where the whole graph and all the parts are there."""
    loops = []
    whole = [s.precision for s in found if s.kind == "onnxruntime"]
    for precision in (p for p in whole if p in LOOP_PRECISIONS):
        parts = [
            _onnx(bundle, verdicts, artefact)
            for graph in PARTS
            for artefact in bundle.artefacts(role="onnx", graph=graph, precision=precision)
        ]
        if len(parts) == len(PARTS):
            files = {path: sha for part in parts for path, sha in part.files.items()}
            paths = {part.graph: part.paths[part.graph] for part in parts}
            void = next((f"{part.graph}: {part.void}" for part in parts if part.void), "")
            loops.append(Subject("host loop", LOOPED, precision, "", files, paths, void))
    return loops


def _void(verdicts: Sequence[Verdict], leg: str, subject: Subject) -> str:
    return why_unproven(verdicts, leg, subject.graph, subject.precision, subject.files)
