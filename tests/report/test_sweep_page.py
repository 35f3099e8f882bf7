"""The page of a sweep: curves by what members share, the recommendation, failures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmprod.report.page import Grid
from mmprod.report.sweep import SweepPage, write_sweep_page


def record(codes: int, curve: str = "spherical, D 8, f 4", **changes: Any) -> dict[str, Any]:
    return {"name": f"{curve} {codes}", "curve": curve, "codes": codes, "coded_bpp": codes / 1000,
            "psnr": 20 + codes / 100, "usage": 1.0, "perplexity": codes / 2, "seen": 0.5,
            **changes}  # fmt: skip


def page(records: list[dict[str, Any]], recommended: str | None) -> SweepPage:
    rows = tuple((r["name"], f"{r['psnr']:.2f}") for r in records)
    return SweepPage("Sweep", "lead", 4096, records, [("bad", "loss is NaN")], recommended,
                     "the rule", ("a reason",), Grid(("member", "PSNR"), rows))  # fmt: skip


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def test_members_of_one_curve_are_joined_and_the_choice_is_marked(tmp_path: Path) -> None:
    records = [record(64), record(16), record(256, "lfq, f 4")]
    written = write_sweep_page(tmp_path, page(records, records[0]["name"]))
    names = ["rate-distortion.svg", "usage.svg", "sweep.md", "sweep.html"]
    assert [path.name for path in written] == names
    words = texts(written[0])
    assert {"K 64, recommended", "K 16", "K 256", "spherical, D 8, f 4", "lfq, f 4"} <= set(words)
    svg = written[0].read_text(encoding="utf-8")
    assert svg.count("<polyline") == 1
    places = re.findall(r'<polyline points="([^"]+)"', svg)[0].split()
    assert float(places[0].split(",")[0]) < float(places[1].split(",")[0])
    html = written[3].read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "bad: loss is NaN" in html
    text = written[2].read_text(encoding="utf-8")
    assert f"Recommended: {records[0]['name']} (the rule)." in text
    assert "- a reason" in text
    assert "| --- | --: |" in text


def test_usage_is_drawn_in_per_cent_of_the_codes(tmp_path: Path) -> None:
    write_sweep_page(tmp_path, page([record(16), record(64, usage=0.5)], None))
    words = texts(tmp_path / "usage.svg")
    curve = "spherical, D 8, f 4"
    assert {f"{curve}: in use", f"{curve}: perplexity / K", "16", "64"} <= set(words)


def test_usage_falls_back_to_what_the_pictures_show(tmp_path: Path) -> None:
    records = [record(16, usage=None, perplexity=None), record(64, usage=None, perplexity=None)]
    write_sweep_page(tmp_path, page(records, None))
    assert "seen" in texts(tmp_path / "usage.svg")


def test_without_members_there_are_no_plots(tmp_path: Path) -> None:
    written = write_sweep_page(tmp_path, page([], None))
    assert [path.name for path in written] == ["sweep.md", "sweep.html"]
    assert "Recommended: none" in written[0].read_text(encoding="utf-8")
