"""The page that a demo ends in: one HTML file with everything inside, no script, no network.

Text is escaped, pictures are PNG data URIs, charts are SVG. It knows nothing of the models: the
caller hands over pictures, texts and tables.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html import escape as escape_html
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmprod.manifest import write_text
from mmprod.report.chart import Curve, render
from mmprod.report.plot import Plot, render_plot

Pixels = npt.NDArray[np.uint8]

STYLE = Path(__file__).with_name("page.css")

LEVELS = {"pass": "good", "built": "good", "fail": "bad", "not run": "open", "not built": "open"}
"""Class of a table cell that holds a verdict; the words themselves carry the meaning."""


@dataclass(frozen=True)
class Card:
    """A picture (H, W, 3) uint8 with a title and lines below it, for example a caption."""

    picture: Pixels
    title: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table: column names and rows; cells become text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out. `pairs`: original and reconstruction;
    `picture`: one (H, W, 3) uint8 over the whole width.
    """

    title: str
    text: str = ""
    picture: Pixels | None = None
    points: tuple[str, ...] = ()
    """sentences of a list"""
    curves: tuple[Curve, ...] = ()
    plots: tuple[Plot, ...] = ()
    pairs: tuple[tuple[Pixels, Pixels], ...] = ()
    cards: tuple[Card, ...] = ()
    grid: Grid | None = None
    commands: tuple[tuple[str, str], ...] = ()
    """what to type, and what it does"""


@dataclass(frozen=True)
class DemoPage:
    """The whole page: title, one sentence, headline figures (name, value), sections in order."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = field(default=())


def write_demo_page(out: Path, data: DemoPage) -> None:
    """Write the page to `out` (one .html file), atomically."""
    write_text(out, render_demo_page(data))


def render_demo_page(data: DemoPage) -> str:
    """The page as text."""
    facts = "".join(
        f'<div class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
        for name, value in data.facts
    )
    links = "".join(
        f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>'
        for section in data.sections
    )
    sections = "\n".join(_section(section) for section in data.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(data.title)}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{escape(data.title)}</h1>
<p class="lead">{escape(data.lead)}</p>
<dl class="facts">{facts}</dl>
<nav>{links}</nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def escape(text: str) -> str:
    """Text as HTML, without the control characters that a model may write."""
    return escape_html("".join(c if c.isprintable() else "\ufffd" for c in text))


def data_uri(picture: Pixels) -> str:
    """A picture (H, W, 3) uint8 as a PNG data URI. Raises ValueError for another shape or dtype."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"not an (H, W, 3) uint8 picture: {picture.dtype} {picture.shape}")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _section(section: Section) -> str:
    parts = [f'<section id="{_anchor(section.title)}">', f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.points:
        items = "".join(f"<li>{escape(point)}</li>" for point in section.points)
        parts.append(f"<ul>{items}</ul>")
    parts += [f'<figure class="plot">{render_plot(plot)}</figure>' for plot in section.plots]
    if section.picture is not None:
        source = data_uri(section.picture)
        parts.append(f'<img class="wide" src="{source}" alt="{escape(section.title)}">')
    if section.curves:
        charts = "".join(
            f"<figure><figcaption>{escape(c.title)}</figcaption>{render(c)}</figure>"
            for c in section.curves
        )
        parts.append(f'<div class="charts">{charts}</div>')
    if section.pairs:
        pairs = "".join(_pair(*pair) for pair in section.pairs)
        parts.append(f'<div class="cards">{pairs}</div>')
    if section.cards:
        parts.append(f'<div class="cards">{"".join(map(_card, section.cards))}</div>')
    if section.grid:
        parts.append(_table(section.grid))
    if section.commands:
        items = "".join(
            f"<li><code>{escape(command)}</code><span>{escape(what)}</span></li>"
            for command, what in section.commands
        )
        parts.append(f'<ul class="commands">{items}</ul>')
    return "\n".join([*parts, "</section>"])


def _pair(original: Pixels, restored: Pixels) -> str:
    pictures = "".join(
        f'<img src="{data_uri(picture)}" alt="{word}">'
        for picture, word in ((original, "original"), (restored, "reconstruction"))
    )
    return f'<div class="pair">{pictures}</div>'


def _card(card: Card) -> str:
    title = f"<h3>{escape(card.title)}</h3>" if card.title else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in card.lines)
    alt = escape(card.title or " ".join(card.lines))
    return f'<div class="card"><img src="{data_uri(card.picture)}" alt="{alt}">{title}{lines}</div>'


def _table(grid: Grid) -> str:
    numeric = [_is_number(value) for value in grid.rows[0]] if grid.rows else []
    head = "".join(
        f'<th class="number">{escape(name)}</th>' if number else f"<th>{escape(name)}</th>"
        for name, number in zip(grid.columns, numeric or [False] * len(grid.columns), strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in grid.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    kind = "number" if _is_number(value) else LEVELS.get(text, "")
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _anchor(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
