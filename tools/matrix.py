"""All graphs x precisions x targets on one page: built or refused, parity, sizes, seconds.

    mmprod export RUN --precision fp32,fp16,bf16,int8,fp8 --out BUNDLE
    python tools/matrix.py BUNDLE --out docs/precision-matrix.md

Parity is read from the bundle, where the export left it. Engines are built with TensorRT for RTX
into a temporary folder, by the rules of `mmprod build`: none from a graph that failed parity. The
bundle stays as it is. `--cells FILE` keeps each engine that was built, so that an interrupted run
goes on; those that failed are tried again, and all of them with another version of TensorRT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmprod.bundle import Artefact, Bundle, open_bundle
from mmprod.engines.flavours import choose_flavour
from mmprod.engines.job import BuildJob, BuildResult
from mmprod.engines.pool import Limits, run_jobs
from mmprod.engines.targets import FIRST, check_request, find_target
from mmprod.errors import ConfigError, MmprodError
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import write_text
from mmprod.parity.limits import LIMITS
from mmprod.parity.render import render_limit
from mmprod.parity.standing import standing_rows
from mmprod.runners.cuda import find_device

TARGETS = ("sm80", "sm86", "sm89", "sm120")
PRECISIONS = tuple(FIRST)
NOT_BUILT = "not built yet: the same command without --no-build does it"


@dataclass(frozen=True)
class Graph:
    """One graph in one precision. `status` and `reason`: its verdict in ONNX Runtime."""

    spec: GraphSpec
    precision: str
    artefact: Artefact | None
    status: str
    reason: str

    @property
    def bytes(self) -> int:
        return self.artefact.bytes if self.artefact else 0


@dataclass(frozen=True)
class Cell:
    """What became of one engine: built, or why not. `products`: heavy operators by datatype, as
    read from the build log."""

    bytes: int = 0
    seconds: float = 0.0
    products: Mapping[str, int] | None = None
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:.2f} MB, {self.seconds:.1f} s"


Key = tuple[str, str, str]
"""graph, precision, target"""


def graphs_of(bundle: Bundle) -> list[Graph]:
    """All graphs in all precisions, in catalog order, each with its verdict."""
    rows = standing_rows(bundle)
    verdicts = {
        (row["graph"], row["precision"]): row
        for row in rows
        if row["leg"] == "torch-ort" and not row["target"]
    }
    return [
        _graph(bundle, spec, precision, verdicts.get((spec.name, precision)))
        for spec in bundle.specs.values()
        for precision in PRECISIONS
    ]


def _graph(bundle: Bundle, spec: GraphSpec, precision: str, row: Mapping[str, Any] | None) -> Graph:
    found = bundle.artefacts(role="onnx", graph=spec.name, precision=precision)
    if not found:
        return Graph(spec, precision, None, "not run", "not exported")
    if row is None or row["sha256"].get(found[0].path) != found[0].sha256:
        return Graph(spec, precision, found[0], "not run", "no verdict for this file")
    return Graph(spec, precision, found[0], row["status"], row["reason"])


def refusal(graph: Graph, target: str) -> str:
    """Why no engine of a graph is built for a target; "" when one is."""
    try:
        check_request(graph.precision, target, "rtx")
    except ConfigError as error:
        return error.message
    if graph.status != "pass":
        return f"{graph.spec.name} {graph.precision}: parity {graph.status}: {graph.reason}"
    return ""


def build(
    bundle: Bundle,
    graphs: Sequence[Graph],
    targets: Sequence[str],
    known: Path | None = None,
    stop: bool = False,
    version: str = "",
) -> dict[Key, Cell]:
    """Build every engine that is not refused; one cell for each graph, precision and target.

    `known`: a file of engines that were built before, to which each new one is added; a failure is
    not, for it may have been the machine's. `stop`: build nothing; what `known` lacks is said to be
    not built. `version`: that of TensorRT, whose engines alone are taken from `known`.
    """
    cells: dict[Key, Cell] = {}
    found = _read(known, version)
    with tempfile.TemporaryDirectory(prefix="mmprod-matrix-") as folder:
        jobs = []
        for graph in graphs:
            for target in targets:
                why = refusal(graph, target)
                if why:
                    cells[graph.spec.name, graph.precision, target] = Cell(refusal=why)
                    continue
                assert graph.artefact is not None
                if (graph.artefact.sha256, target) in found:
                    cells[graph.spec.name, graph.precision, target] = found[
                        graph.artefact.sha256, target
                    ]
                    continue
                if stop:
                    cells[graph.spec.name, graph.precision, target] = Cell(refusal=NOT_BUILT)
                    continue
                name = f"{graph.spec.name}.{graph.precision}.{target}.plan"
                jobs.append(
                    BuildJob.of(
                        graph.spec,
                        onnx=bundle.path(graph.artefact).resolve(),
                        plan=Path(folder) / name,
                        precision=graph.precision,
                        target=("rtx", target),
                        files=[(Path(graph.artefact.path).name, graph.artefact.sha256)],
                    )
                )
        for done, (job, outcome) in enumerate(run_jobs(jobs, limits=Limits()), start=1):
            cells[job.graph, job.precision, job.target] = cell = _cell(job, outcome)
            if known and not isinstance(outcome, MmprodError):
                (graph,) = bundle.artefacts("onnx", job.graph, job.precision)
                key = {"onnx": graph.sha256, "target": job.target, "tensorrt": version}
                line = {**key, "cell": asdict(cell)}
                with known.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
            print(f"{done}/{len(jobs)} {job.label}: {cell.refusal or cell}", file=sys.stderr)
    return cells


def _read(known: Path | None, version: str) -> dict[tuple[str, str], Cell]:
    """Engines that this TensorRT built, by the hash of their graph and their target."""
    if known is None or not known.exists():
        return {}
    lines = map(json.loads, known.read_text(encoding="utf-8").splitlines())
    return {
        (line["onnx"], line["target"]): Cell(**line["cell"])
        for line in lines
        if line.get("tensorrt") == version and not line["cell"]["refusal"]
    }


def _cell(job: BuildJob, outcome: BuildResult | MmprodError) -> Cell:
    if isinstance(outcome, MmprodError):
        return Cell(refusal=outcome.message)
    plan = Path(job.plan)
    size = plan.stat().st_size
    plan.unlink()
    return Cell(size, outcome.seconds, outcome.precision["in_engine"])


def render(
    head: str, graphs: Sequence[Graph], cells: Mapping[Key, Cell], targets: Sequence[str]
) -> str:
    """The page. Every refusal is a numbered note, so no cell is without a reason."""
    notes: dict[str, int] = {}

    def note(text: str) -> str:
        word = "not built" if text == NOT_BUILT else "refused"
        return f"{word} [{notes.setdefault(text, len(notes) + 1)}]"

    lines = []
    for graph in graphs:
        found = [cells[graph.spec.name, graph.precision, target] for target in targets]
        told = [note(cell.refusal) if cell.refusal else str(cell) for cell in found]
        kinds = {_products(cell.products) for cell in found if cell.products is not None}
        size = f"{graph.bytes / 1e6:.2f} MB" if graph.artefact else "-"
        reason = graph.reason.removeprefix("closest to its limit: ")
        verdict = (graph.status, reason.partition(";")[0] if graph.status == "pass" else reason)
        products = "; ".join(sorted(kinds)) or "-"
        lines.append([graph.spec.name, graph.precision, size, *verdict, products, *told])
    columns = ("graph", "precision", "ONNX", "parity", "closest to its limit, or why")
    parts = [
        head,
        _table((*columns, "products in the engine", *targets), lines),
        "## Notes",
        "\n".join(f"{number}. {text}" for text, number in notes.items()) or "None.",
        "## Limits",
        "The figures and the reason of each limit are in `reports/parity.md` of every bundle.",
        _table(("output", "graphs", *PRECISIONS), list(_limits())),
    ]
    return "\n\n".join(parts) + "\n"


def _products(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted((counts or {}).items()))


def _limits() -> Iterator[list[str]]:
    """A line per output and kind of graph with its limits in every precision."""
    for role, kind in dict.fromkeys((role, kind) for role, _, kind in LIMITS):
        found = [LIMITS.get((role, precision, kind), ()) for precision in PRECISIONS]
        yield [role, kind, *("; ".join(map(render_limit, limits)) or "-" for limits in found)]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def head_of(bundle: Bundle, targets: Sequence[str], version: str, seconds: float) -> str:
    """What the page is about, and how it was made."""
    devices = ", ".join(f"{name} ({find_target(name).devices})" for name in targets)
    why = "" if find_device().found else ": the machine had no CUDA device"
    return (
        "# Graphs, precisions, targets\n\n"
        f"Made by `python tools/matrix.py` from a bundle of the run `{bundle.name}`: every graph "
        f"in every precision, built with TensorRT for RTX {version} for {devices}. No engine was "
        f"run{why}. Parity is that of ONNX Runtime on the processor "
        "against PyTorch in fp32. Cells: bytes of the engine and the seconds its build took, "
        f"beside whatever else ran on the {len(os.sched_getaffinity(0))} processor cores; "
        f"{seconds:.0f} s for all of them, added up. "
        "*Products* are matrix products and convolutions by datatype, read from the build log."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--no-build", action="store_true", help="only what --cells holds")
    given = parser.parse_args()
    targets = given.targets.split(",")
    bundle = open_bundle(given.bundle)
    flavour = choose_flavour("rtx", targets)
    graphs = graphs_of(bundle)
    cells = build(bundle, graphs, targets, given.cells, given.no_build, flavour.version)
    seconds = sum(cell.seconds for cell in cells.values())
    write_text(
        given.out,
        render(head_of(bundle, targets, flavour.version, seconds), graphs, cells, targets),
    )


if __name__ == "__main__":
    main()
