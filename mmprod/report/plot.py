"""Plots as SVG files that stand alone: told apart by marker and dash as well as colour, with every
curve named at its end, readable in print. No script, no style sheet, no fonts of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from mmprod.report.chart import ticks

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""left, top, right, bottom"""

WIDTH, HEIGHT = 820, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 150, 84, 54
COLOURS = ("#0b4f9e", "#b3400f", "#1c7043", "#7a2f92", "#6b5500", "#a01648", "#006a75", "#3d3d3d")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 4", "12 4", "5 2 1 2", "4 6")
FONT = "font-family=\"system-ui, 'DejaVu Sans', Arial, sans-serif\""
GREY, INK, PALE = "#55585e", "#1d1f23", "#e3e3e3"
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z", "M-4 -4h8v8h-8z", "M0 -5.2L5 4h-10z",
    "M0 -5.6L5 0L0 5.6L-5 0z", "M0 5.2L5 -4h-10z",
    "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "M0 -5.5L5.2 -1.5L3.2 4.5H-3.2L-5.2 -1.5z", "M-5 -2.5h10v5h-10z",
)  # fmt: skip
"""Markers as paths around the origin: circle, square, triangles, diamond, plus, pentagon, bar."""
LETTER = 6.6
"""Width of a letter of the labels in pixels, roughly, ..."""
BOLD = 1.15
"""... and how much wider a bold one is."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one name, joined in their order. `labels`: words at single points."""

    name: str
    points: Sequence[Point]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """A plot. `log_x`: for x > 0. `top`: a second scale above, (label, factor): factor x value.
    `marks`: where the x axis is marked, round values if empty.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    top: tuple[str, float] | None = None
    marks: Sequence[float] = ()


def render_plot(plot: Plot) -> str:
    """The plot as an `<svg>` element. Raises ValueError when there is nothing to draw."""
    points = [p for line in plot.lines for p in line.points]
    if not points or not all(math.isfinite(v) for p in points for v in p):
        raise ValueError(f"{plot.title}: a plot needs points, and all of them finite")
    frame = _Frame.around(points, plot.log_x)
    taken = [box for line in plot.lines for box in _occupied(frame, line)]
    parts = [_axes(frame, plot)]
    parts += [_curve(frame, index, line) for index, line in enumerate(plot.lines)]
    parts += [_name(frame, index, line, taken) for index, line in enumerate(plot.lines)]
    for index, line in enumerate(plot.lines):
        parts += [
            _word(frame.at(point), word, index, taken)
            for point, word in zip(line.points, line.labels, strict=False)
        ]
    title = escape(plot.title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}" {FONT}><title>{title}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600" fill="{INK}">{title}</text>'
        f"{''.join(parts)}</svg>\n"
    )


@dataclass(frozen=True)
class _Frame:
    """From values to pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool

    @classmethod
    def around(cls, points: Sequence[Point], log_x: bool) -> _Frame:
        """A frame with some room at every side."""
        xs = [math.log10(x) if log_x else x for x, _ in points]
        ys = [y for _, y in points]
        wide = max(max(xs) - min(xs), 0.1 if log_x else 1e-3)
        high = max(max(ys) - min(ys), 1e-3)
        x_range = min(xs) - 0.05 * wide, max(xs) + 0.04 * wide
        return cls(x_range, (min(ys) - 0.07 * high, max(ys) + 0.08 * high), log_x)

    def x(self, value: float) -> float:
        low, high = self.x_range
        place = math.log10(value) if self.log_x else value
        return LEFT + (place - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def at(self, point: Point) -> Point:
        return self.x(point[0]), self.y(point[1])

    def x_ticks(self, factor: float = 1.0) -> list[float]:
        """Round values of `factor` x value within the frame."""
        low, high = self.x_range
        if not self.log_x:
            return [t for t in ticks(low * factor, high * factor) if low <= t / factor <= high]
        start, end = 10**low * factor, 10**high * factor
        decades = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
        for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = [s * 10.0**d for d in decades for s in steps if start <= s * 10.0**d <= end]
            if len(found) >= 4:
                return found
        return [t for t in ticks(start, end) if start <= t <= end]


def _axes(frame: _Frame, plot: Plot) -> str:
    bottom, right, middle = HEIGHT - BOTTOM, WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2
    parts = []
    for value in ticks(*frame.y_range):
        if frame.y_range[0] <= value <= frame.y_range[1]:
            y = frame.y(value)
            parts.append(_rule(LEFT, y, right, y) + _text(LEFT - 9, y + 4, f"{value:g}", "end"))
    for value in plot.marks or frame.x_ticks():
        x = frame.x(value)
        parts.append(_rule(x, TOP, x, bottom) + _text(x, bottom + 18, f"{value:g}", "middle"))
    if plot.top:
        label, factor = plot.top
        for value in frame.x_ticks(factor):
            x = frame.x(value / factor)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 5}" y2="{TOP}" stroke="{GREY}"/>'
            )
            parts.append(_text(x, TOP - 9, f"{value:g}", "middle"))
        parts.append(_text(middle, TOP - 28, escape(label), "middle"))
    edges = f"M{LEFT} {TOP}V{bottom}H{right}" + (f"M{LEFT} {TOP}H{right}" if plot.top else "")
    parts.append(f'<path d="{edges}" fill="none" stroke="{GREY}"/>')
    parts.append(_text(middle, HEIGHT - 12, escape(plot.x_label), "middle"))
    turned = f'transform="rotate(-90 20 {(TOP + bottom) / 2:.0f})"'
    parts.append(_text(20, (TOP + bottom) / 2, escape(plot.y_label), "middle", turned))
    return "".join(parts)


def _curve(frame: _Frame, index: int, line: Line) -> str:
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    places = [frame.at(point) for point in line.points]
    parts = []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
            f' stroke-linejoin="round"{pattern}/>'
        )
    shape = SHAPES[index % len(SHAPES)]
    parts += [
        f'<path d="{shape}" transform="translate({x:.1f} {y:.1f})" fill="{colour}" '
        'stroke="#ffffff" stroke-width="1"/>'
        for x, y in places
    ]
    return "".join(parts)


def _name(frame: _Frame, index: int, line: Line, taken: list[Box]) -> str:
    """The curve's name near its last point, else its first, where there is room."""
    if not line.points:
        return ""
    places = [frame.at(line.points[-1]), frame.at(line.points[0])]
    return _place(places, line.name, index, taken, 14)


def _word(place: Point, word: str, index: int, taken: list[Box]) -> str:
    return _place([place], word, index, taken, 11.5) if word else ""


def _place(places: Sequence[Point], text: str, index: int, taken: list[Box], size: float) -> str:
    """Text beside one of the places, overlapping nothing that stands already if that can be."""
    wide, high = len(text) * LETTER * size / 12 * (BOLD if size > 12 else 1), size
    spots: list[Box] = []
    for x, y in places:
        for away in (0, 10, 20, 32):
            spots += [
                (x + 9 + away, y - high / 2, x + 9 + away + wide, y + high / 2),
                (x - wide / 2, y - high - 8 - away, x + wide / 2, y - 8 - away),
                (x - wide / 2, y + 8 + away, x + wide / 2, y + high + 8 + away),
                (x - 9 - wide - away, y - high / 2, x - 9 - away, y + high / 2),
                (x + 6, y - high - 6 - away, x + 6 + wide, y - 6 - away),
                (x + 6, y + 6 + away, x + 6 + wide, y + high + 6 + away),
            ]
    inside = [
        (left, top, right, bottom)
        for left, top, right, bottom in spots
        if left >= LEFT and right <= WIDTH and top >= TOP and bottom <= HEIGHT - BOTTOM
    ]
    free = [s for s in inside if not any(_overlap(s, box) for box in taken)]
    spot = (free or inside or spots)[0]
    taken.append(spot)
    weight = ' font-weight="600"' if size > 12 else ""
    return (
        f'<text x="{spot[0]:.1f}" y="{spot[3] - size * 0.15:.1f}" font-size="{size:g}"{weight} '
        f'fill="{COLOURS[index % len(COLOURS)]}" stroke="#ffffff" stroke-width="3" '
        f'paint-order="stroke">{escape(text)}</text>'
    )


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _around(place: Point, half: float) -> Box:
    return place[0] - half, place[1] - half, place[0] + half, place[1] + half


def _occupied(frame: _Frame, line: Line) -> Iterator[Box]:
    """What a curve covers: its markers, and small boxes along its strokes."""
    places = [frame.at(point) for point in line.points]
    yield from (_around(place, 6) for place in places)
    for (x0, y0), (x1, y1) in pairwise(places):
        count = max(1, round(math.hypot(x1 - x0, y1 - y0) / 6))
        for i in range(1, count):
            yield _around((x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count), 3)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{PALE}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" fill="{GREY}" text-anchor="{anchor}" '
        f"{more}>{text}</text>"
    )
