"""`mmprod search query`: a text or a picture, and what is most similar to it."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.output import Output, Text, shown
from mmprod.cli.output import Table as View
from mmprod.cli.rerank import check_rerank, reranked
from mmprod.cli.search_sheet import write_sheet
from mmprod.cli.sheet import Sheet, read_picture
from mmprod.cli.use import BackendOption
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.search import Hit

Want = Literal["image", "text"]


def query(
    out: Output,
    place: Annotated[
        str, typer.Argument(metavar="INDEX", help="Folder, or an address: s3://bucket/name.")
    ],
    what: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|PICTURE",
            help="Words; or a picture: x.png, dir/x or ./x without a suffix.",
        ),
    ],
    count: Annotated[int, typer.Option("-k", min=1, max=1000, help="Hits to show.")] = 10,
    want: Annotated[Want, typer.Option("--want", help="What to find.")] = "image",
    rerank: Annotated[
        int,
        typer.Option(
            "--rerank",
            metavar="N",
            min=0,
            max=1000,
            help="Put the first N in order of the query's likelihood given each.",
        ),
    ] = 0,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="PNG", help="Contact sheet to write, best first."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every item, even where there are partitions.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="RUN|BUNDLE", help="The model, if it was moved."),
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Find the pictures, or with --want text the captions, most similar to words or a picture."""
    from mmprod.cli.search_model import open_embedder, open_model
    from mmprod.search import Searcher, open_table

    file = _picture_file(what)
    check_rerank(rerank, count, words=file is None, want=want)
    page = None if sheet is None else Sheet(sheet, None)
    if page is not None:
        page.check()
    table = open_table(place)
    opened = open_model(table, source, backend)
    asked = what if file is None else read_picture(file, opened.dims.image_size)
    with closing(open_embedder(opened)) as embedder:
        start = time.perf_counter()
        hits = Searcher(table, embedder).search(asked, rerank or count, want=want, exact=exact)
        spent = (time.perf_counter() - start) * 1000
        executed = embedder.backend
    if rerank:
        hits = reranked(opened, table, asked, hits)[:count]
    sources: dict[str, str] = {}
    if page is not None:
        first = [] if isinstance(asked, str) else [asked]
        sources = write_sheet(page, opened, table, first, hits)
    scale = "log p(query | hit), nats" if rerank else "cosine"
    data: dict[str, Any] = {
        "index": place,
        "query": what,
        "by": "text" if file is None else "image",
        "want": want,
        "hits": [_document(rank, hit, sources) for rank, hit in enumerate(hits, 1)],
        "score": scale,
        "reranked": rerank,
        "exact": exact or not table.partitioned(want),
        "search_ms": spent,
        "sheet": sheet if sources else None,
        "backend": executed,
    }
    rows = [
        (rank, f"{hit.score:.4f}", *([hit.text] * (want == "text")), _shown(hit.name))
        for rank, hit in enumerate(hits, 1)
    ]
    columns = ("", scale, *(["caption"] * (want == "text")), "picture")
    views: list[Text | View] = [View("", columns, rows)]
    if not hits:
        views = [Text(f"{place} holds nothing of the kind asked for")]
    elif sheet is not None:
        views.append(Text(_about_sheet(sheet, sources, executed)))
    out.result(data, *views)


def _picture_file(what: str) -> Path | None:
    """The picture that is meant; None for words: whatever has no suffix of a picture, unless it has
    a folder before it and is there. Raises ConfigError for a picture that cannot be opened.
    """
    from mmprod.data.pictures import SUFFIXES

    if not what.strip():
        raise ConfigError("the query is empty", hint="give words, or a picture file")
    path, words = Path(what), "give words, or a picture that exists"
    named = path.suffix.lower() in SUFFIXES
    if not named and "/" not in what:
        return None
    try:
        if path.is_file():
            return path
        there = path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(f"{what} cannot be opened: {error.strerror}", hint=words) from error
    if there or named:
        why = "is no file" if there else "does not exist"
        raise ConfigError(f"{what} {why}", hint=words)
    return None


def _document(rank: int, hit: Hit, sources: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"rank": rank, "name": hit.name, "score": hit.score}
    found |= {"text": hit.text} if hit.kind == "text" else {}
    return found | ({"on_sheet": sources[hit.name]} if sources else {})


def _about_sheet(sheet: Path, sources: Mapping[str, str], executed: str) -> str:
    """Where it is, and how many of its pictures are not the files themselves."""
    from mmprod.cli.search_sheet import BLANK, CODES

    counts = Counter(sources.values())
    notes = [f"{counts[source]} {source}" for source in (CODES, BLANK) if counts[source]]
    return f"{shown(sheet)} ({'; '.join([executed, *notes])})"


def _shown(name: str) -> str:
    return shown(Path(name))
