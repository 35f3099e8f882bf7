"""The one sink of results. stdout: tables for people, or one JSON document. stderr: all the rest.

A command hands over its result once, as data plus the views that show it to people. Rich is
imported when a view is drawn, not before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmprod.log import own_rank, rank_prefix

if TYPE_CHECKING:
    from rich.console import Console

    from mmprod.errors import MmprodError

PIPE_WIDTH = 120
"""Columns of a table that is written to a file or pipe, unless COLUMNS says otherwise."""

STYLES = {
    "pass": "green",
    "ready": "green",
    "built": "green",
    "ok": "green",
    "degraded": "yellow",
    "not run": "yellow",
    "fail": "bold red",
    "blocked": "bold red",
}
"""Colour of a cell that holds a verdict; the words themselves carry the meaning."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; cells become text. whole: columns whose cells are never broken."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    whole: Sequence[str] = ()


@dataclass(frozen=True)
class Fields:
    """Names with values, one a line."""

    title: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Text:
    """Plain lines, printed as they are."""

    text: str


View = Table | Fields | Text


class Output:
    """Where a command's words go. `as_json`: one document, no views. `verbosity`: -1, 0, 1."""

    def __init__(self, *, as_json: bool = False, verbosity: int = 0) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self._document_written = False

    @property
    def live(self) -> bool:
        """Whether a progress bar can be drawn."""
        return sys.stderr.isatty() and self.verbosity >= 0

    def result(self, data: Mapping[str, Any], *views: View) -> None:
        """What the command found: `data` under --json, else the views. Once per command."""
        if self.as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False, default=_plain), flush=True)
            self._document_written = True
            return
        for index, view in enumerate(views):
            if index:
                print()
            draw(view, sys.stdout)

    def note(self, text: str) -> None:
        """A remark on stderr; silent under -q."""
        if self.verbosity >= 0:
            print(text, file=sys.stderr, flush=True)

    def fail(self, error: MmprodError) -> None:
        """What went wrong and what to do, on stderr; under --json a document if there is none.

        Ranks fail together with the same words, so all but the first say it in one line.
        """
        if own_rank():
            print(f"{rank_prefix()}error: {error.message}", file=sys.stderr, flush=True)
            return
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.stderr.flush()
        self.document(error)

    def document(self, error: MmprodError) -> None:
        """Under --json, the error as the command's document if there is none yet."""
        if self.as_json and not self._document_written:
            kind = type(error).__name__
            failure = {"type": kind, "message": error.message, "hint": error.hint}
            self.result({"error": {**failure, "exit_code": error.exit_code}})


def shown(path: Path) -> str:
    """A path as people read it: relative when it lies below the current folder."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100 (keeps links as typed)
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


def megabytes(size: int) -> str:
    """A size in bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def console(stream: TextIO) -> Console:
    """A Rich console that never interprets the text it is given."""
    from rich.console import Console

    width = None
    if not stream.isatty():
        width = (
            int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH
        )
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def draw(view: View, stream: TextIO) -> None:
    """A view as people read it."""
    if isinstance(view, Text):
        print(_printable(view.text), file=stream)
        return
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
        title=view.title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    if isinstance(view, Fields):
        table.show_header = False
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in view.values.items():
            table.add_row(_printable(name), _cell(value))
    else:
        for column in view.columns:
            table.add_column(column, overflow="fold", no_wrap=column in view.whole)
        for row in view.rows:
            table.add_row(*(_cell(value) for value in row))
    target = console(stream)
    if isinstance(view, Table) and view.whole:  # rather beyond the edge than cut off
        unlimited = target.options.update(width=10_000)
        target.width = max(target.width, target.measure(table, options=unlimited).minimum)
    target.print(table)


def _cell(value: object) -> Any:
    from rich.text import Text as RichText

    text = _printable(f"{value:.4g}" if isinstance(value, float) else str(value))
    return RichText(text, style=STYLES.get(text, ""))


def _printable(text: str) -> str:
    """The text without control characters: a model may write any, a terminal would obey them."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _plain(value: object) -> object:
    """JSON form of the things that results hold: paths, tuples' kin, NumPy scalars."""
    if isinstance(value, Path):
        return str(value)
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")
