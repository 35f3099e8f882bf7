"""`mmprod parity explain`: which block of a graph leaves its reference, and why?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import BundleArg
from mmprod.cli.output import Output, Table, Text, View, megabytes
from mmprod.cli.parity_page import parity_page
from mmprod.cli.progress import parity_tick, progress
from mmprod.cli.source import torch_runners
from mmprod.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.parity.explain import Explanation
    from mmprod.parity.islands import Island
    from mmprod.parity.report import ParityReport

SHOWN = 12
"""Blocks shown on each side of the first one over its limit."""
TIMEOUT_S = 300.0
"""How long one answer may take when a repaired bundle is checked."""


def explain(
    out: Output,
    bundle: BundleArg,
    graph: Annotated[str, typer.Option("--graph", metavar="GRAPH", help="Which graph.")],
    precision: Annotated[str, typer.Option(metavar="P", help="Of the graph in question.")] = "fp32",
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with a fresh fp32 export of this run."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write the graph with its fp32 islands, check again.")
    ] = False,
) -> None:
    """Find the first block over its limit, name the cause, propose modules to keep in fp32.

    Exit 5 when a block is over its limit and was not repaired; the bundle is then as it was.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.explain import WITH_ISLANDS, plain_graphs
    from mmprod.parity.explain import explain as look

    opened = open_bundle(bundle)
    names = plain_graphs(opened, graph)
    if repair and precision not in WITH_ISLANDS:
        raise ConfigError(
            f"{precision} graphs have no fp32 islands", hint="mmprod export RUN writes them anew"
        )
    found: list[Explanation] = []
    with tempfile.TemporaryDirectory(prefix="mmprod-explain-") as folder:
        for name in names:
            out.note(f"looking into {name} {precision}")
            fresh = _fresh(against, name, Path(folder)) if against else None
            found.append(look(opened, name, precision, fresh))
        guilty = [item for item in found if item.cause]
        island = _island(opened, graph, guilty, Path(folder))
        if island is not None and repair:
            island = _repair(out, opened, island, Path(folder), against)
    data: dict[str, Any] = {
        "graph": graph,
        "precision": precision,
        "ok": not guilty or (island is not None and island.written),
        "looked into": [item.as_dict() for item in found],
        "islands": island.as_dict() if island else None,
    }
    out.result(data, *_views(graph, found, island))
    if guilty and not (island and island.written):
        item = guilty[0]
        assert item.cause is not None
        raise ParityFailed(
            f"{item.graph} {precision}: {item.block}: {item.cause.kind}: {item.cause.text}",
            hint=_hint(guilty, island, repair),
        )


def _hint(guilty: list[Explanation], island: Island | None, repair: bool) -> str:
    from mmprod.parity.causes import CURABLE

    if island is not None and repair:
        return "these modules in fp32 do not cure it, the bundle is as it was: use fp32"
    if island is not None:
        return "--repair writes the graph with these modules in fp32 and checks it again"
    if all(item.cause and item.cause.kind in CURABLE for item in guilty):
        return "no set of modules in fp32 cures it: use fp32"
    return "the file is not what the exporter writes: mmprod export RUN writes it anew"


def _fresh(run: Path, graph: str, folder: Path) -> Path:
    from mmprod.checkpoint import open_run
    from mmprod.export.islands import export_fresh

    path = folder / f"{graph}.onnx"
    export_fresh(open_run(run), graph, path)
    return path


def _island(bundle: Bundle, graph: str, guilty: list[Explanation], folder: Path) -> Island | None:
    """The graph rebuilt with islands, where they cure all that was found."""
    if not guilty or not all(item.islands for item in guilty):
        return None
    from mmprod.export.islands import cast_with_islands
    from mmprod.parity.islands import sampler_island, search_islands

    found = [search_islands(bundle, item, folder, cast_with_islands) for item in guilty]
    whole = [island for island in found if island is not None]
    if len(whole) < len(found):
        return None
    if whole[0].graph == graph:
        return whole[0]
    return sampler_island(bundle, graph, whole, folder, cast_with_islands)


def _repair(
    out: Output, bundle: Bundle, island: Island, folder: Path, against: Path | None
) -> Island:
    """Written into the bundle if parity passes; `against`: live, with this run."""
    from mmprod.parity.repair import write_island
    from mmprod.parity.run import Comparison

    runners = None
    if against is not None:
        from mmprod.checkpoint import open_run

        runners = torch_runners(open_run(against))

    def check(changed: Bundle) -> ParityReport:
        with progress(out, parity_tick) as on_event:
            return Comparison(
                changed,
                reference=(lambda spec: runners(spec.name)) if runners else None,
                precisions=(island.precision,),
                on_event=on_event,
                timeout_s=TIMEOUT_S,
                page=parity_page,
            ).run()

    return write_island(bundle, island, folder, check)


def _views(graph: str, found: list[Explanation], island: Island | None) -> list[View]:
    views: list[View] = []
    for item in found:
        blocks = item.bisection.blocks
        at = next((n for n, row in enumerate(blocks) if not row.ok), len(blocks) - 1)
        shown = blocks[max(0, at - SHOWN) : at + SHOWN]
        rows = [
            (row.block, f"{row.error:.2e}", f"{row.limit:.0e}", "ok" if row.ok else "fail")
            for row in shown
        ]
        title = f"{item.graph} {item.precision} against {item.reference}"
        views.append(Table(title, ("block", "error", "limit", "verdict"), rows))
        if item.cause and item.bisection.first:
            place = f"{item.block} (at {item.bisection.first.node})"
            views.append(
                Text(f"first over its limit: {place}\n{item.cause.kind}: {item.cause.text}")
            )
        else:
            views.append(Text(f"all {len(blocks)} blocks are within their limits"))
    if [item.graph for item in found] != [graph]:
        rest = "" if any(item.cause for item in found) else "; what is left is its own arithmetic"
        views.append(Text(f"{graph} is a loop over the blocks of these graphs{rest}"))
    if island is not None:
        views.append(Text(_island_text(island)))
    return views


def _island_text(island: Island) -> str:
    before, after = island.before, island.after
    lines = [
        f"keep in fp32: {', '.join(island.modules)}",
        f"cost: {megabytes(before.bytes)} become {megabytes(after.bytes)}, "
        f"{before.ms:.2f} ms become {after.ms:.2f} ms on this processor",
        f"parity: {island.verdict}{' (written into the bundle)' if island.written else ''}",
    ]
    if island.engines:
        lines.append(
            f"{island.engines} engines of the graph before were removed: mmprod build BUNDLE --trt "
            f"--precision {island.precision}"
        )
    return "\n".join(lines)
