"""The page of rate-distortion: plots, tables, what stands where."""

from __future__ import annotations

import re
from pathlib import Path

from mmprod.evaluation.rate import RatePoint
from mmprod.report.page import Grid
from mmprod.report.rate import RatePage, write_rate_page

GRID = Grid(("codec", "bytes"), (("f4 16 | x", "12"), ("JPEG", "300")))


def point(codec: str, setting: str, size: float, quality: float) -> RatePoint:
    return RatePoint(codec, setting, size, 8 * size / 4096, quality, 0.5, 0.8, 0.0, 0.0)


def page(*ours: RatePoint) -> RatePage:
    theirs = [point("JPEG", f"q{q}", 300.0 * 2**q, 20.0 + 4 * q) for q in range(6)]
    exact = [point("WebP", "q0", 200, 22), point("WebP", "lossless", 2000, 100)]
    return RatePage("lead", 4096, ours, {"JPEG": theirs, "WebP": exact}, ["who wins"],
                    [("Files", GRID)])  # fmt: skip


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def test_writes_plots_tables_and_page(tmp_path: Path) -> None:
    written = write_rate_page(tmp_path, page(point("ours", "raw", 100, 24)))
    names = ["rate-psnr.svg", "rate-ms-ssim.svg", "rate.md", "rate.html"]
    assert [path.name for path in written] == names
    html = written[-1].read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "who wins" in html
    table = "| codec | bytes |\n| --- | --: |\n| f4 16 \\| x | 12 |\n| JPEG | 300 |\n"
    text = written[2].read_text(encoding="utf-8")
    assert table in text
    assert "- who wins" in text
    assert "**Files**" in text


def test_priors_that_all_codecs_have_are_named_once(tmp_path: Path) -> None:
    both = [point(c, p, s, 24) for c, s in (("a", 90), ("b", 70)) for p in ("raw", "static")]
    ours = [both[0], point("a", "static", 80, 24), both[2], point("b", "static", 60, 24)]
    words = texts(write_rate_page(tmp_path, page(*ours))[0])
    assert "bits per pixel of whole files; ours from the right: raw, static" in words
    assert {"a", "b", "JPEG", "WebP", "300 bytes"} <= set(words)
    assert "raw" not in words


def test_priors_stand_at_their_markers_where_codecs_differ_in_them(tmp_path: Path) -> None:
    ours = [point("a", "raw", 90, 24), point("a", "static", 60, 24), point("b", "raw", 70, 25)]
    words = texts(write_rate_page(tmp_path, page(*ours))[0])
    assert words.count("raw") == 2
    assert words.count("static") == 1
    assert "bits per pixel of whole files" in words


def test_plot_follows_others_near_ours_and_no_lossless_file(tmp_path: Path) -> None:
    svg = write_rate_page(tmp_path, page(point("ours", "raw", 100, 24)))[0].read_text("utf-8")
    jpeg, *more = re.findall(r'<polyline points="([^"]+)"', svg)
    assert len(jpeg.split()) == 4  # 20, 24, 28 dB, and 32 as one of the first four
    assert not more  # of WebP only its lossy file is left
    assert max(float(t) for t in texts(tmp_path / "rate-psnr.svg") if t.isdecimal()) < 20_000
