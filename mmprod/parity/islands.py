"""Which modules have to stay in fp32 for a reduced graph to agree, and what they cost.

The rebuild itself is handed in, because it needs the exporter and torch: a function from (fp32
graph, specification, precision, modules, path) to a file at the path and what the bundle notes of
it. What is written into a bundle, repair.py does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.bisect import bisect
from mmprod.parity.cases import Case
from mmprod.parity.explain import Explanation, cases_of, find_graph
from mmprod.parity.openers import open_onnx
from mmprod.parity.surgery import OUTSIDE, import_onnx, nodes_of

Rebuild = Callable[[Path, GraphSpec, str, Sequence[str], Path], Mapping[str, Any]]

MOST = 8
"""Modules kept in fp32 before it is given up."""
CALLS = 5

_IN_SAMPLERS = {"fusion_step": "fusion."}
"""What a sampler puts before the module paths of a plain graph that is a model itself."""


@dataclass(frozen=True)
class Cost:
    """Of one file: its size, and the fastest of some calls on a stored case."""

    bytes: int
    ms: float


@dataclass(frozen=True)
class Island:
    """Modules to keep in fp32, the rebuilt graph at `path`, and what it costs. `verdict`: of parity
    once it was tried, else of the bisection.
    """

    graph: str
    precision: str
    modules: tuple[str, ...]
    path: Path
    meta: Mapping[str, Any]
    before: Cost
    after: Cost
    verdict: str
    written: bool = False
    engines: int = 0
    """Engines of the graph before, which were taken out of the bundle."""

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("path", "meta")}


def search_islands(
    bundle: Bundle, found: Explanation, folder: Path, rebuild: Rebuild
) -> Island | None:
    """Add one block after the other until no block of a plain graph is over its limit; None when
    that does not come about with `MOST` of them.
    """
    spec, precision = bundle.specs[found.graph], found.precision
    source, old = (find_graph(bundle, spec.name, p) for p in ("fp32", precision))
    cases = cases_of(bundle, spec)
    path = folder / old.name
    modules: list[str] = []
    wanted = found.block
    while wanted and wanted != OUTSIDE and wanted not in modules and len(modules) < MOST:
        modules.append(wanted)
        meta = rebuild(source, spec, precision, modules, path)
        first = bisect(source, path, cases, precision, narrow=False).first
        if first is None:
            return Island(
                spec.name,
                precision,
                tuple(modules),
                path,
                meta,
                _cost(spec, old, precision, cases[-1]),
                _cost(spec, path, precision, cases[-1]),
                "all blocks are within their limits",
            )
        wanted = first.block
    return None


def sampler_island(
    bundle: Bundle, graph: str, found: Sequence[Island], folder: Path, rebuild: Rebuild
) -> Island | None:
    """A sampler with the islands of the plain graphs it is made of, as far as it has them; None
    when it has none.
    """
    spec, precision = bundle.specs[graph], found[0].precision
    source, old = (find_graph(bundle, graph, p) for p in ("fp32", precision))
    nodes = [node for _, node in nodes_of(import_onnx().load(source))]
    scopes = sorted({node.name.rpartition("/")[0].partition("/")[2] for node in nodes})
    modules = list(
        dict.fromkeys(
            path
            for island in found
            for module in island.modules
            for path in _paths(scopes, f"{_IN_SAMPLERS.get(island.graph, '')}{module}")
        )
    )
    if not modules:
        return None
    path = folder / old.name
    meta = rebuild(source, spec, precision, modules, path)
    case = cases_of(bundle, spec)[0]
    return Island(
        graph,
        precision,
        tuple(modules),
        path,
        meta,
        _cost(spec, old, precision, case),
        _cost(spec, path, precision, case),
        "not compared yet: --repair compares it",
    )


def _paths(scopes: Sequence[str], module: str) -> Iterator[str]:
    """The full paths of a module in a graph that holds it once or more, at any depth."""
    for scope in scopes:
        at = f".{scope}.".find(f".{module}.")
        if at >= 0:
            yield scope[: at + len(module)]


def graph_files(path: Path) -> list[Path]:
    """An .onnx file, and the weights that the exporter put beside it."""
    data = path.with_name(f"{path.name}.data")
    return [path, data] if data.is_file() else [path]


def _cost(spec: GraphSpec, path: Path, precision: str, case: Case) -> Cost:
    runner = open_onnx(spec, path, precision)
    try:
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            runner(case.inputs)
            times.append(time.perf_counter() - start)
    finally:
        runner.close()
    size = sum(file.stat().st_size for file in graph_files(path))
    return Cost(size, 1000 * min(times))
