"""The demo page: self-contained, escaped, whole; pictures come back bit by bit."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.report.chart import Curve
from mmprod.report.page import Card, DemoPage, Grid, Section, data_uri, write_demo_page

VOID = {"meta", "img", "line", "circle", "polyline", "br", "link"}


class Checker(HTMLParser):
    """Collects tags and attributes, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 6, 3)).astype(np.uint8)


def page() -> DemoPage:
    return DemoPage(
        "Title <b>",
        "lead & more",
        (("PSNR", "24.1 dB"),),
        (
            Section("Curves", curves=(Curve("loss", "step", {"loss": [(0, 1.0), (9, 0.5)]}),)),
            Section("Pairs", pairs=((picture(0), picture(1)),)),
            Section("Faces", cards=(Card(picture(2), lines=('red "hair" <script>',)),)),
            Section(
                "Parity",
                grid=Grid(("graph", "verdict", "cases"), (("a", "pass", 3), ("<b>", "fail", 4))),
            ),
            Section("Next", commands=(("mmprod generate x 'y'", "draws"),)),
        ),
    )


@pytest.fixture
def html(tmp_path: Path) -> str:
    write_demo_page(tmp_path / "page.html", page())
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_has_every_section(html: str) -> None:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.tags.count("section") == 5
    assert [v for n, v in checker.attributes if n == "href"] == [
        "#curves", "#pairs", "#faces", "#parity", "#next",
    ]  # fmt: skip


def test_page_needs_no_network_and_no_script(html: str) -> None:
    checker = Checker()
    checker.feed(html)
    assert "script" not in checker.tags
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert all(v.startswith("data:image/png;base64,") for n, v in checker.attributes if n == "src")
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "@import" not in html


def test_text_is_escaped(html: str) -> None:
    assert "<script>" not in html
    assert "Title &lt;b&gt;" in html
    assert "red &quot;hair&quot; &lt;script&gt;" in html


def test_dark_mode_and_narrow_screens_are_provided_for(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_verdicts_are_marked_and_numbers_lie_right(html: str) -> None:
    assert '<td class="good">pass</td>' in html
    assert '<td class="bad">fail</td>' in html
    assert '<td class="number">3</td>' in html
    assert '<th class="number">cases</th>' in html


def test_pictures_come_back_exactly() -> None:
    original = picture(7)
    encoded = data_uri(original).removeprefix("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(decoded, original)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_something_that_is_no_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not an"):
        data_uri(wrong)


def test_empty_page(tmp_path: Path) -> None:
    write_demo_page(tmp_path / "p.html", DemoPage("t", "l"))
    checker = Checker()
    checker.feed((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert checker.open == []
