"""`mmprod search query`: a text or a picture, and what is most similar to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.output import Output, Text, shown
from mmprod.cli.output import Table as View
from mmprod.cli.rerank import check_rerank, reranked
from mmprod.cli.sheet import Sheet, read_picture
from mmprod.cli.source import Source
from mmprod.cli.use import BackendOption
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.search import Hit, Table

    Pixels = npt.NDArray[np.uint8]

Want = Literal["image", "text"]

COLUMNS = 5
"""pictures side by side on a contact sheet"""


def query(
    out: Output,
    place: Annotated[
        str, typer.Argument(metavar="INDEX", help="Folder, or an address: s3://bucket/name.")
    ],
    what: Annotated[
        str, typer.Argument(metavar="TEXT|PICTURE", help="Words, or a picture file that exists.")
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
    if page is not None:
        first = [] if isinstance(asked, str) else [asked]
        _write_sheet(page, opened, table, first, [hit.name for hit in hits])
    scale = "log p(query | hit), nats" if rerank else "cosine"
    data: dict[str, Any] = {
        "index": place,
        "query": what,
        "by": "text" if file is None else "image",
        "want": want,
        "hits": [_document(rank, hit) for rank, hit in enumerate(hits, 1)],
        "score": scale,
        "reranked": rerank,
        "exact": exact or not table.partitioned,
        "search_ms": spent,
        "sheet": sheet,
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
        views.append(Text(f"{shown(sheet)} ({executed})"))
    out.result(data, *views)


def _picture_file(what: str) -> Path | None:
    """The picture that is meant; None for words. Raises ConfigError for the name of a picture file
    that does not exist.
    """
    from mmprod.data.pictures import SUFFIXES

    if not what.strip():
        raise ConfigError("the query is empty", hint="give words, or a picture file")
    path = Path(what)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than any path
        return None
    if path.suffix.lower() in SUFFIXES:
        raise ConfigError(f"{what} does not exist", hint="give words, or a picture that exists")
    return None


def _write_sheet(
    page: Sheet, source: Source, table: Table, first: Sequence[Pixels], names: Sequence[str]
) -> None:
    """The query picture, if it is one, and the hits: from their files, or where a hit has none any
    more, as the codec remembers it.
    """
    import numpy as np

    found = {name: _from_file(Path(name), source.dims.image_size) for name in names}
    lost = [name for name, pixels in found.items() if pixels is None]
    if lost:
        codes = table.codes(lost)
        with closing(source.runner("codec_decode")) as decode:
            for name in (name for name in lost if name in codes):
                found[name] = decode({"codes": codes[name][None]})["pixels"][0]
    pictures = [*first, *(pixels for name in names if (pixels := found[name]) is not None)]
    if pictures:
        page.write(np.stack(pictures), min(COLUMNS, len(pictures)))


def _from_file(path: Path, size: int) -> Pixels | None:
    """The picture, if it is still there and can be read."""
    if not path.is_file():
        return None
    try:
        return read_picture(path, size)
    except ConfigError:
        return None


def _document(rank: int, hit: Hit) -> dict[str, Any]:
    found: dict[str, Any] = {"rank": rank, "name": hit.name, "score": hit.score}
    return found | ({"text": hit.text} if hit.kind == "text" else {})


def _shown(name: str) -> str:
    return shown(Path(name))
