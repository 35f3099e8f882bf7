"""Charts: round ticks, nothing lost, nothing that is no number, safe text."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from mmprod.report.chart import LABEL_GAP, Curve, render, ticks


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (0.1, 0.93),
        (-3.0, 2.0),
        (1e-6, 4e-6),
        (19.2, 25.4),
        (0, 400),
        (5.0, 5.0),
        (0, 0),
    ],
)
def test_ticks_cover_the_range_in_round_steps(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 * abs(low)
    assert found[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(found) <= 9
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(mantissa == pytest.approx(m) for m in (1, 2, 2.5, 5, 10))


def test_every_series_is_drawn_and_labelled() -> None:
    svg = render(Curve("loss", "step", {"a": [(0, 1.0), (1, 0.5)], "b": [(0, 2.0), (1, 0.25)]}))
    assert svg.count("<polyline") == 2
    assert ">a 0.5<" in svg
    assert ">b 0.25<" in svg
    assert len(set(re.findall(r'stroke-dasharray="[^"]+"', svg))) == 1  # the first line is solid


def test_values_that_are_no_numbers_are_left_out() -> None:
    svg = render(Curve("x", "step", {"a": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]}))
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    assert len(points[1].split()) == 2
    assert "nan" not in svg
    assert "inf" not in svg


def test_one_point_is_a_dot_and_no_point_is_a_sentence() -> None:
    assert "<polyline" not in render(Curve("x", "step", {"a": [(5, 1.0)]}))
    assert "nothing was recorded" in render(Curve("x", "step", {}))


def test_labels_at_the_right_end_do_not_overlap() -> None:
    series = {name: [(0.0, 1.0), (1.0, 0.001 * i)] for i, name in enumerate("abcd")}
    svg = render(Curve("x", "step", series))
    heights = sorted(float(y) for y in re.findall(r'<text class="s\d" x="[^"]+" y="([^"]+)"', svg))
    assert len(heights) == 4
    assert all(b - a >= LABEL_GAP - 0.2 for a, b in pairwise(heights))


def test_names_are_escaped() -> None:
    svg = render(Curve("<b>", "a&b", {"<i>": [(0, 1.0)]}))
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "a&amp;b" in svg
