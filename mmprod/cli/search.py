"""`mmprod search`: pictures found by words, words by pictures, and either by its like.

pictures and captions -> towers -> index;  a text or picture -> tower -> nearest items -> hits
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import SourceArg, choices, command, group
from mmprod.cli.output import Fields, Output, Table, megabytes, shown
from mmprod.cli.progress import progress, search_tick
from mmprod.cli.search_query import query
from mmprod.cli.source import Source, open_source
from mmprod.cli.use import BackendOption, PrecisionOption
from mmprod.errors import ConfigError, MmprodError

if TYPE_CHECKING:
    from mmprod.search import Table as Index
    from mmprod.search.items import Entry
    from mmprod.search.update import Change

SHOWN_LEFT = 10
"""pictures that were left out and are named; --json names all"""
PROBED = 200
"""stored pictures that are searched for, to compare partitions with a search of everything"""

app = group("Find pictures by words, words by pictures, and either by its like.")

IndexArg = Annotated[
    str, typer.Argument(metavar="INDEX", help="Folder, or an address: s3://bucket/name.")
]
command(app, "query")(query)


@command(app, "index")
def index(
    out: Output,
    source: SourceArg,
    pictures: Annotated[
        Path,
        typer.Argument(metavar="FOLDER|DATA", help="Folder of pictures, or prepared data set."),
    ],
    target: Annotated[str, typer.Option("--out", metavar="INDEX", help="Where the index lies.")],
    splits: Annotated[
        str, typer.Option("--split", metavar="SPLIT,...", help="Of a data set; all if not given.")
    ] = "",
    prune: Annotated[
        bool, typer.Option("--prune", help="Forget what is no longer in FOLDER or DATA.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a picture that cannot be read.")
    ] = False,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Make an index, or bring one up to date; run it again to go on after an interruption."""
    from mmprod.cli.search_model import about, open_embedder
    from mmprod.search import create_table, is_table, open_table
    from mmprod.search.update import check_strict, update, writing
    from mmprod.search.update import prune as prune_index

    if precision == "auto":
        raise ConfigError("an index is of one precision", hint="name it: --precision fp16")
    if prune and splits:
        raise ConfigError(
            "--prune would forget the other splits", hint="leave --prune or --split out"
        )
    opened = open_source(source, backend, precision)
    model = about(source, opened, precision)
    entries, left = _entries(opened, pictures, choices(splits))
    there = is_table(target)
    if not entries and not (prune and there):
        raise ConfigError(f"{pictures} holds no pictures", hint="png, jpg, webp, ... in any depth")
    if strict:
        check_strict(left)
    start = time.perf_counter()
    with closing(open_embedder(opened)) as embedder:
        executed = embedder.backend
        table = open_table(target) if there else create_table(target, model)
        table.about.check_same(model, target)
        with writing(target), _not_in_vain(table, made=not there):
            with progress(out, search_tick) as on_event:
                change = update(table, embedder, entries, strict=strict, on_event=on_event)
            if entries and len(change.left) == len(entries):
                first = change.left[0]
                raise ConfigError(
                    f"no picture of {pictures} can be used, first {first['file']}: "
                    f"{first['reason']}",
                    hint="png, jpg, webp, ... in any depth",
                )
            change.left += left
            if prune:
                change.gone += prune_index(table, pictures, entries, left)
            table.tidy()
    _report(out, table, change, time.perf_counter() - start, executed)


@command(app, "delete")
def delete(
    out: Output,
    place: IndexArg,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="As `query` shows them, or patterns with *."),
    ],
) -> None:
    """Take pictures and their captions out of an index."""
    from mmprod.search import open_table
    from mmprod.search.update import writing

    table = open_table(place)
    with writing(place):
        wanted = _named(names, table.digests(), place)
        table.drop(wanted)
        table.tidy()
    data = {"index": place, "deleted": wanted, **table.counts()}
    out.result(data, Fields("", {"deleted": len(wanted), "pictures left": data["pictures"]}))


@command(app, "optimize")
def optimize(out: Output, place: IndexArg) -> None:
    """Sort an index into partitions, for many pictures; says what a search then misses."""
    from mmprod.search import open_table
    from mmprod.search.measure import K, compare_partitions
    from mmprod.search.update import writing

    table = open_table(place)
    if not table.counts()["pictures"]:
        raise ConfigError(f"{place} is empty", hint="index pictures first: mmprod search index")
    start = time.perf_counter()
    with writing(place):
        table.tidy()
        made = table.partition()
    spent = time.perf_counter() - start
    found = compare_partitions(table, PROBED)
    data = {
        "index": place,
        "seconds": spent,
        "partitions": made,
        "searches": [asdict(comparison) for comparison in found],
    }
    few = "none: so few are faster looked at as they are"
    values = {
        "took": f"{spent:.1f} s",
        "partitions of pictures": made["image"] or few,
        "partitions of captions": made["text"] or few,
    }
    rows = [
        (c.by, c.want, f"{c.recall:.2%}", f"{c.exact_ms:.1f}", f"{c.partitioned_ms:.1f}")
        for c in found
    ]
    columns = ("by", "for", f"first {K} kept", "everything, ms", "partitions, ms")
    views = [Table(f"{PROBED} searches each, medians", columns, rows)] if rows else []
    out.result(data, Fields("", values), *views)


@command(app, "info")
def info(out: Output, place: IndexArg) -> None:
    """What an index holds, and which model made it."""
    from mmprod.search import open_table

    table = open_table(place)
    counts = table.counts()
    in_parts = {"image": table.partitioned("image"), "text": table.partitioned("text")}
    data: dict[str, Any] = {
        "index": place,
        **counts,
        "partitioned": in_parts,
        **asdict(table.about),
    }
    values = {
        "pictures": f"{counts['pictures']:,}",
        "captions": f"{counts['captions']:,}",
        "size": megabytes(counts["bytes"]),
        "pictures searched": "by partitions" if in_parts["image"] else "whole",
        "captions searched": "by partitions" if in_parts["text"] else "whole",
        "made by": f"{table.about.source} ({table.about.precision})",
        "embedding": f"{table.about.embedding} numbers",
        **table.about.files,
    }
    out.result(data, Fields("", values))


@command(app, "verify")
def verify_command(out: Output, place: IndexArg) -> None:
    """Read every item and check it; exit 4 names the first that was damaged."""
    from mmprod.search import open_table
    from mmprod.search.verify import verify

    found = verify(open_table(place))
    text = f"ok: {found['pictures']:,} pictures, {found['captions']:,} captions"
    out.result({"index": place, **found}, Fields("", {place: text}))


@contextmanager
def _not_in_vain(table: Index, *, made: bool) -> Iterator[None]:
    """An index that was just made goes if an error leaves it empty. Use it inside `writing`."""
    try:
        yield
    except MmprodError:
        if made and not table.digests():
            table.discard()
        raise


def _entries(
    source: Source, pictures: Path, splits: tuple[str, ...]
) -> tuple[list[Entry], list[dict[str, str]]]:
    """What there is to index, and what was left out already."""
    from mmprod.search.entries import Taken, data_entries, folder_entries

    taken = Taken(source.dims.image_size, source.languages())
    if (pictures / "data.json").is_file():
        return data_entries(pictures, splits, taken), []
    if splits:
        raise ConfigError(f"{pictures} is no prepared data set", hint="leave --split out")
    left: list[dict[str, str]] = []
    return folder_entries(pictures, taken, left), left


def _named(names: Sequence[str], held: Collection[str], place: str) -> list[str]:
    """The pictures of an index that are meant by paths or patterns. Raises ConfigError for a name
    that means none.
    """
    wanted: set[str] = set()
    for name in names:
        # As `index` names them: the folder's links are followed, those in it are not.
        spellings = {name, str(Path(name).parent.resolve() / Path(name).name)}
        found = {text for text in spellings if text in held}
        if "*" in name and not found:
            forms = [re.escape(text).replace(r"\*", ".*") for text in spellings]
            pattern = re.compile("|".join(forms))
            found = {other for other in held if pattern.fullmatch(other)}
        if not found:
            raise ConfigError(
                f"{place} has no picture {name}", hint="`mmprod search query` shows names"
            )
        wanted |= found
    return sorted(wanted)


def _report(out: Output, table: Index, change: Change, spent: float, executed: str) -> None:
    """What an update did."""
    done = change.added + change.replaced
    data = {
        "index": table.place,
        **asdict(change),
        **table.counts(),
        "seconds": spent,
        "backend": executed,
    }
    speed = f", {done / spent:.0f} pictures/s" if done else ""
    values = {
        "index": f"{table.place}: {data['pictures']:,} pictures, {data['captions']:,} captions",
        "added": change.added,
        "replaced": change.replaced,
        "as before": change.same,
        "taken out": change.gone,
        "left out": len(change.left),
        "took": f"{spent:.1f} s{speed} ({executed})",
    }
    rows = [(shown(Path(e["file"])), e["reason"]) for e in change.left[:SHOWN_LEFT]]
    views = [Table("left out", ("file", "reason"), rows)] if rows else []
    out.result(data, Fields("", values), *views)
