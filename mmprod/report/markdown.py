"""Tables as Markdown, for pages that people write around them."""

from __future__ import annotations

from mmprod.report.page import Grid


def markdown_table(grid: Grid) -> str:
    """A table with a line for each row; numbers stand at the right. Ends with a line break."""
    rows = [[_cell(value) for value in row] for row in grid.rows]
    wide = range(len(grid.columns))
    rule = ["--:" if rows and all(_is_figure(row[i]) for row in rows) else "---" for i in wide]
    lines = [[_cell(name) for name in grid.columns], rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def _is_figure(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).removeprefix("-").isdecimal()
