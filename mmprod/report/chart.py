"""Line charts as inline SVG: no script, readable in light and dark, told apart without colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 600, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 14, 36
DASHES = ("", "7 4", "2 4", "9 3 2 3")
"""Stroke pattern per series, beside its colour."""
TICKS = 5
LABEL_GAP = 14.0
"""Least distance between two labels at the right end, in pixels."""


@dataclass(frozen=True)
class Curve:
    """A chart: title, what the horizontal axis counts, and points (x, y) by series name.

    log: a logarithmic vertical axis, on which values of zero and below are left out; including:
    values that the vertical axis reaches, whatever the points are.
    """

    title: str
    x_label: str
    series: Mapping[str, Sequence[Point]]
    log: bool = False
    including: tuple[float, ...] = ()


def render(curve: Curve) -> str:
    """The chart as an `<svg>` element. Points that are not finite are left out."""
    series = {
        name: [p for p in points if all(map(math.isfinite, p)) and (p[1] > 0 or not curve.log)]
        for name, points in curve.series.items()
    }
    series = {name: points for name, points in series.items() if points}
    title = escape(curve.title)
    if not series:
        return f'<p class="empty">{title}: nothing was recorded.</p>'
    xs = [x for points in series.values() for x, _ in points]
    ys = [*curve.including, *(y for points in series.values() for _, y in points)]
    x_ticks = ticks(min(xs), max(xs))
    y_ticks = (log_ticks if curve.log else ticks)(min(ys), max(ys))
    frame = _Frame(
        (min(xs), max(max(xs), min(xs) + 1)),
        (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))),
        curve.log,
    )
    body = _axes(frame, x_ticks, y_ticks, escape(curve.x_label))
    ends = _spread([frame.y(points[-1][1]) for points in series.values()])
    for index, (name, points) in enumerate(series.items()):
        body += _line(frame, index, name, points, ends[index])
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{body}</svg>"
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below `low` to above `high` (1, 2, 2.5 or 5 times ten to n)."""
    span = high - low or max(abs(high), 1.0) * 0.1
    raw = span / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + i) * step, 12) for i in range(max(count, 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 or 5 times ten to n from at most `low` to at least `high`, both positive; at
    most about TICKS: over wide ranges only powers of ten, or every second, third ... of them.
    """
    bottom, top = (math.floor(math.log10(v) + 1e-9) for v in (low, high))
    fine = [f * 10.0**n for n in range(bottom, top + 2) for f in (1, 2, 5)]
    first = max(i for i, v in enumerate(fine) if v <= low * (1 + 1e-9))
    last = min(i for i, v in enumerate(fine) if v >= high * (1 - 1e-9))
    if last - first <= TICKS:
        return fine[first : max(last, first + 1) + 1]
    stride = math.ceil((top + 1 - bottom) / TICKS)
    return [10.0**n for n in range(bottom, top + 1 + stride, stride)]


@dataclass(frozen=True)
class _Frame:
    """From data ranges to pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (*self.y_range, value))
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_ticks: list[float], y_ticks: list[float], label: str) -> str:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    bottom = HEIGHT - BOTTOM
    for value in x_ticks:
        if frame.x_range[0] <= value <= frame.x_range[1]:
            x = frame.x(value)
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _line(frame: _Frame, index: int, name: str, points: Sequence[Point], label_y: float) -> str:
    style = f"s{index % len(DASHES)}"
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    dash = DASHES[index % len(DASHES)]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    x, y = frame.x(points[-1][0]), frame.y(points[-1][1])
    end = f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    label = f"{escape(name)} {points[-1][1]:.3g}"
    at = f'x="{WIDTH - RIGHT + 10}" y="{label_y + 4:.1f}"'
    text = f'<text class="{style}" {at}>{label}</text>'
    line = f'<polyline class="{style}" points="{path}"{pattern}/>' if len(points) > 1 else ""
    return line + end + text


def _spread(wanted: list[float]) -> list[float]:
    """The wanted heights moved apart so that labels do not overlap, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = dict.fromkeys(order, 0.0)
    last = -math.inf
    for i in order:
        last = placed[i] = max(wanted[i], last + LABEL_GAP)
    overflow = max(0.0, last - (HEIGHT - BOTTOM))
    return [placed[i] - overflow for i in range(len(wanted))]
