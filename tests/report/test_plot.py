"""Plots that stand alone: scales, marks, names that do not cover each other."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from mmprod.report.plot import DASHES, HEIGHT, LEFT, RIGHT, SHAPES, WIDTH, Line, Plot, render_plot

SVG = "{http://www.w3.org/2000/svg}"


def plot(**changes: object) -> Plot:
    lines = (
        Line("ours", [(0.1, 20.0), (0.2, 22.0)], ["K 16", "K <64>"]),
        Line("theirs & co", [(0.3, 22.0), (3.0, 40.0)]),
    )
    values = {"title": "t", "x_label": "bpp", "y_label": "dB", "lines": lines, "log_x": True}
    return Plot(**{**values, **changes})  # type: ignore[arg-type]


def test_is_whole_xml_with_every_name_and_label() -> None:
    root = ElementTree.fromstring(render_plot(plot()))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"ours", "theirs & co", "K 16", "K <64>", "bpp", "dB"} <= set(words)
    assert len(list(root.iter(f"{SVG}polyline"))) == 2


def test_series_differ_without_colour() -> None:
    svg = render_plot(plot())
    assert svg.count(SHAPES[0]) == 2
    assert svg.count(SHAPES[1]) == 2
    assert f'stroke-dasharray="{DASHES[1]}"' in svg
    assert len(set(SHAPES)) == len(SHAPES) == len(set(DASHES))


def test_a_decade_is_as_long_everywhere_on_a_logarithmic_axis() -> None:
    line = Line("a", [(1.0, 0.0), (10.0, 1.0), (100.0, 2.0)])
    svg = render_plot(plot(lines=[line]))
    found = re.search(r'points="([^"]+)"', svg)
    assert found
    xs = [float(pair.split(",")[0]) for pair in found[1].split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert xs[0] > LEFT
    assert xs[2] < WIDTH - RIGHT


def test_second_scale_is_the_first_times_its_factor() -> None:
    line = Line("a", [(1.0, 0.0), (10.0, 1.0)])
    root = ElementTree.fromstring(render_plot(plot(lines=[line], top=("bytes", 512.0))))
    texts = [(float(t.get("x", 0)), float(t.get("y", 0)), t.text) for t in root.iter(f"{SVG}text")]
    below = {text: x for x, y, text in texts if y > HEIGHT - 60}
    above = {text: x for x, y, text in texts if y < 90}
    assert below["2"] < above["2000"] < below["5"]  # 2000 bytes are 3.9


def test_marks_replace_round_values() -> None:
    line = Line("a", [(16.0, 0.0), (1024.0, 1.0)])
    words = render_plot(plot(lines=[line], marks=(16, 1024)))
    assert ">16<" in words
    assert ">1024<" in words
    assert ">100<" not in words


def test_names_do_not_cover_each_other() -> None:
    lines = [Line(f"curve {i}", [(1.0, 1.0 * i), (2.0, 2.0 + 0.05 * i)]) for i in range(5)]
    svg = render_plot(plot(lines=lines))
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="14"', svg)
    assert len(places) == 5
    for (x1, y1), (x2, y2) in combinations([(float(x), float(y)) for x, y in places], 2):
        assert abs(y1 - y2) >= 12 or abs(x1 - x2) >= 40


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs points"):
        render_plot(plot(lines=[]))
    with pytest.raises(ValueError, match="finite"):
        render_plot(plot(lines=[Line("a", [(1.0, float("nan"))])]))
