"""A parity report as a page: verdicts, figures beside their limits, and where each output differs.

Made of the report's JSON data and a few small arrays; it knows nothing of graphs or runners. A map
shows one case per line and one position per column, pictures their own pixels. White is no
difference; how large the darkest red is stands below: the limit where it has the map's unit, or the
largest difference where that is more, so that a pale map is a harmless one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.report.page import Card, DemoPage, Grid, Pixels, Section, render_demo_page

Arrays = Mapping[str, npt.NDArray[Any]]
Maps = Mapping[tuple[str, str], Arrays]
"""by subject ("torch-ort codec_encode fp32") and output: heat, and for pictures also reference and
candidate
"""

_LIGHT = np.array([255.0, 255.0, 255.0])
_DARK = np.array([150.0, 10.0, 20.0])
_FAINTEST = 0.15
"""share of the way to the darkest that the smallest difference is drawn with, to be seen at all"""
_IDS = ("codes", "tokens")
_LARGEST = ("max_level", "max_abs")
"""figures in the unit of a map"""


def render_parity_page(data: Mapping[str, Any], maps: Maps, meanings: Mapping[str, str]) -> str:
    """The page of a report (`ParityReport.as_dict`). `meanings`: what a map of an output of this
    role shows.
    """
    rows: Sequence[Mapping[str, Any]] = data["rows"]
    verdict = "passed" if data["ok"] else "FAILED" if data["fail"] else "compared nothing"
    source = f"{data['seeds']} noise seeds of batches {data['batches']}" if data["seeds"] else ""
    facts = (
        ("pass", str(data["pass"])),
        ("fail", str(data["fail"])),
        ("not run", str(data["not run"])),
        ("compared with", data["reference"]),
        ("cases", f"stored and {source}" if source else "stored"),
    )
    graphs = list(dict.fromkeys(row["graph"] for row in rows))
    sections = (
        Section("Verdicts", grid=_verdicts(rows)),
        *(section for graph in graphs if (section := _graph(graph, rows, maps, meanings))),
        *_tasks(data.get("tasks", ())),
        Section("Figures", grid=_figures(rows)),
        Section("Limits and why", _LIMITS, grid=_limits(data["limits"], rows)),
        Section("Files", "A verdict holds for these files only.", grid=_files(rows)),
    )
    lead = "Every graph and engine of the bundle beside PyTorch in fp32, on the same inputs."
    title = f"Parity of {data['bundle']}: {verdict}"
    return render_demo_page(DemoPage(title, lead, facts, sections))


_LIMITS = "The limits of the precisions above, each with its reason."


def subject_of(row: Mapping[str, Any]) -> str:
    """What a row speaks of, in words."""
    return " ".join(filter(None, (row["leg"], row["graph"], row["precision"], row["target"])))


def paint(values: npt.NDArray[Any], darkest: float) -> Pixels:
    """(H, W) of differences >= 0 -> (H, W, 3): white where there is none."""
    share = np.minimum(values.astype(np.float64) / (darkest or 1.0), 1.0)
    share = np.where(values > 0, _FAINTEST + (1 - _FAINTEST) * share, 0.0)[..., None]
    painted: Pixels = np.rint(_LIGHT + share * (_DARK - _LIGHT)).astype(np.uint8)
    return painted


def _darkest(output: Mapping[str, Any], largest: float) -> float:
    """Shares go to 1, other maps to the limit on the largest difference if the output has one."""
    if output["role"] in _IDS:
        return 1.0
    limits = [float(c["limit"]) for c in output["checks"] if c["figure"] in _LARGEST]
    return max([largest, *limits])


def _graph(
    graph: str, rows: Sequence[Mapping[str, Any]], maps: Maps, meanings: Mapping[str, str]
) -> Section | None:
    """The maps of one graph; None when nothing of it was compared."""
    cards: list[Card] = []
    points: list[str] = []
    for row in (row for row in rows if row["graph"] == graph):
        for output in row["outputs"]:
            found = maps.get((subject_of(row), output["name"]))
            if found is None:
                continue
            title = " ".join(filter(None, (output["name"], row["precision"], row["target"])))
            if not found["heat"].any():
                points.append(f"{title}: equal everywhere, in {row['cases']} cases")
                continue
            cards += _cards(title, row, output, found, meanings)
    if not cards and not points:
        return None
    return Section(f"Where {graph} differs", points=tuple(points), cards=tuple(cards))


def _cards(
    title: str,
    row: Mapping[str, Any],
    output: Mapping[str, Any],
    found: Arrays,
    meanings: Mapping[str, str],
) -> list[Card]:
    """The map, then the worst sample's two pictures."""
    heat = found["heat"]
    largest = float(heat.max())
    darkest = _darkest(output, largest)
    shape = "pixels" if output["role"] == "pixels" else "cases x positions"
    lines = (
        f"{row['status']}. {heat.shape[0]} x {heat.shape[1]} {shape}, largest {largest:.4g}, "
        f"darkest red {darkest:.4g}",
        meanings.get(output["role"], ""),
    )
    cards = [Card(paint(heat, darkest), title, lines)]
    if "reference" in found:
        at = output["worst"]["case"] if output["worst"] else ""
        cards.append(Card(found["reference"], f"{title}: PyTorch", (f"worst case: {at}",)))
        cards.append(Card(found["candidate"], f"{title}: this graph", (f"worst case: {at}",)))
    return cards


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Grid:
    keys = ("leg", "graph", "precision", "target", "status", "cases", "samples", "reason", "advice")
    return Grid(keys, tuple(tuple(row[key] or "-" for key in keys) for row in rows))


def _figures(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Figures with their limits, then those without."""
    lines: list[tuple[object, ...]] = []
    for row in rows:
        for output in row["outputs"]:
            head = (subject_of(row), output["name"])
            checks = {check["figure"]: check for check in output["checks"]}
            for figure, value in output["figures"].items():
                check = checks.get(figure)
                limit = f"{check['bound']} {check['limit']:.7g}" if check else "none"
                verdict = ("pass" if check["ok"] else "fail") if check else "-"
                lines.append((*head, figure, f"{value:.6g}", limit, verdict))
    return Grid(("what", "output", "figure", "value", "limit", "verdict"), tuple(lines))


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    """Task metrics beside those of tensors; nothing when none were asked for."""
    if not tasks:
        return ()
    keys = ("metric", "by", "value", "unit", "samples")
    rows = [
        (t["metric"], t["backend"], f"{t['value']:.5g}", t["unit"], t["samples"]) for t in tasks
    ]
    text = "What comes out for held-out samples, by each backend. Reported, not judged."
    return (Section("What a use sees", text, grid=Grid(keys, tuple(rows))),)


def _limits(limits: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Grid:
    asked = {row["precision"] for row in rows}
    keys = ("role", "precision", "kind", "figure", "bound", "value", "reason")
    lines = [limit for limit in limits if limit["precision"] in asked]
    texts = [{**limit, "value": f"{limit['value']:.7g}"} for limit in lines]
    return Grid(keys, tuple(tuple(limit[key] for key in keys) for limit in texts))


def _files(rows: Sequence[Mapping[str, Any]]) -> Grid:
    files = {entry["path"]: entry["sha256"] for row in rows for entry in row["files"]}
    return Grid(("file", "sha256"), tuple(sorted(files.items())))
