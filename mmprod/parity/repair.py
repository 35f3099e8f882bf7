"""Put a graph with fp32 islands into a bundle, or leave the bundle as it was.

The graph is first tried in a copy of the bundle. Only when parity passes there, the bundle's own
files change, and whatever goes wrong from then on, they are put back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmprod.bundle import Bundle
from mmprod.bundle.undo import put_back_on_failure
from mmprod.errors import ParityFailed
from mmprod.manifest import atomic_path
from mmprod.parity.islands import Island, graph_files
from mmprod.parity.report import ParityReport, Row
from mmprod.parity.run import Comparison
from mmprod.parity.sabotage import copy_graph

Check = Callable[[Bundle], ParityReport]
"""Runs parity on a bundle and writes the report into it."""


def write_island(bundle: Bundle, island: Island, folder: Path, check: Check) -> Island:
    """Put the rebuilt graph in place of the old one, whose engines go with it, and check the
    bundle; the island with the verdict, `written` only if that is a pass.

    `folder`: for the copy. When this raises, the files of the bundle are as before; open it anew.
    """
    copy = copy_graph(bundle, island.graph, island.precision, folder / "trial")
    _put(copy, island)
    row = _row(Comparison(copy, precisions=(island.precision,)).compare(), island)
    if row.status != "pass":
        return replace(island, verdict=f"{row.status}: {row.reason}")
    about = {"graph": island.graph, "precision": island.precision}
    changing = [*bundle.artefacts(**about), *bundle.artefacts(role="report")]
    with bundle.writing(), put_back_on_failure(bundle.root, [a.path for a in changing]):
        engines = _put(bundle, island)
        row = _row(check(bundle), island)
        if row.status != "pass":
            raise ParityFailed(
                f"{island.graph} {island.precision} with {', '.join(island.modules)} in fp32 "
                f"passes on the stored cases and not in the bundle: {row.reason}",
                hint="the bundle is as it was; use fp32 of this graph",
            )
    return replace(island, verdict=f"pass: {row.reason}", written=True, engines=engines)


def _put(bundle: Bundle, island: Island) -> int:
    """Write and list the files; take out engines of the old graph, and say how many."""
    about = {"graph": island.graph, "precision": island.precision}
    old = bundle.path(bundle.artefacts(role="onnx", **about)[0])
    engines = bundle.artefacts(role="engine", **about)
    notes = bundle.artefacts(role="engine-info", **about)
    beside = bundle.artefacts(role="onnx-data", **about)
    for artefact in (*engines, *notes, *beside):
        bundle.remove(bundle.path(artefact))
    for file in graph_files(island.path):
        target = old.with_name(file.name)
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
        role = "onnx" if target == old else "onnx-data"
        bundle.add(target, role=role, **about, meta=island.meta)
    bundle.save()
    return len(engines)


def _row(report: ParityReport, island: Island) -> Row:
    rows = report.select(leg="torch-ort")
    wanted = (island.graph, island.precision, "")
    return next(
        r for r in rows if (r.subject.graph, r.subject.precision, r.subject.target) == wanted
    )
