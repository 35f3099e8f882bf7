"""The page of a stage: every figure of metrics.jsonl is on it once, thinned and readable."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.errors import IntegrityError
from mmprod.report.chart import Curve, log_ticks, render
from mmprod.report.curves import POINTS, thinned, write_curves

LOG = {
    "loss": 0.5,
    "encoder": 0.1,
    "reconstruction": 0.4,
    "a_new_term": 0.2,
    "usage": 0.9,
    "perplexity": 30.0,
    "restarts": 0.5,
    "snr": 12.0,
    "real_logit": 0.6,
    "fake_logit": -0.4,
    "lr": 1e-3,
    "grad_norm": 0.7,
    "images_per_s": 210.0,
    "seconds": 75.0,
}


def stage_folder(root: Path, *records: dict[str, object]) -> Path:
    folder = root / "my-run" / "codec"
    (folder / "samples").mkdir(parents=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def titles(html: str) -> list[str]:
    return re.findall(r"<figcaption>([^<]*)</figcaption>", html)


def test_every_figure_has_a_chart_and_the_newest_samples_are_shown(tmp_path: Path) -> None:
    logs = [{"kind": "log", "step": s, **LOG, "loss": 1 / s} for s in (10, 20, 30)]
    evaluation = {"kind": "eval", "step": 30, "psnr": 21.5, "loss": 0.3, "seconds": 75.0}
    folder = stage_folder(tmp_path, *logs, evaluation)
    for step in (20, 30):
        Image.fromarray(np.full((4, 6, 3), step, np.uint8)).save(
            folder / "samples" / f"step-{step:06d}.png"
        )
    html = write_curves(folder).read_text(encoding="utf-8")
    assert "my-run: training of the codec" in html
    assert titles(html) == [
        "Losses, in all and by name",
        "Losses, further terms",
        "Codebook usage (share of codes)",
        "Codebook perplexity (codes)",
        "Restarted codes per step",
        "Quantization SNR (dB)",
        "Mean logit of real and restored patches",
        "PSNR (dB)",
        "Losses on the val split, in all and by name",
        "Learning rate",
        "Gradient norm before clipping",
        "Images per second",
    ]
    assert ">a new term 0.2<" in html
    assert ">fake logit -0.4<" in html
    assert ">1</text>" in html.partition("Codebook usage")[2].partition("Codebook perplexity")[0]
    assert "Step 30. Above pictures of the val split" in html
    assert html.count("<img ") == 1
    for fact in ("21.50 dB", "90.0%", "12.0 dB", "210 images/s", "1 min 15 s"):
        assert f"<dd>{fact}</dd>" in html


def test_a_stage_that_just_began_has_a_page(tmp_path: Path) -> None:
    folder = stage_folder(tmp_path, {"kind": "log", "step": 5, "loss": 2.0})
    html = write_curves(folder).read_text(encoding="utf-8")
    assert titles(html) == ["Losses, in all and by name"]
    assert "After 5 optimizer steps" in html


def test_a_broken_metrics_file_is_an_integrity_error(tmp_path: Path) -> None:
    folder = stage_folder(tmp_path)
    (folder / "metrics.jsonl").write_text("{broken\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match="not JSON"):
        write_curves(folder)
    assert not (folder / "curves.html").exists()


def test_long_series_are_thinned_to_means_and_keep_their_end() -> None:
    points = [(float(step), math.sin(step / 900)) for step in range(10_007)]
    few = thinned(points)
    assert len(few) == POINTS
    assert few[-1][0] == points[-1][0]
    assert [x for x, _ in few] == sorted({x for x, _ in few})
    weights = np.diff([-1.0, *(x for x, _ in few)])
    mean = np.average([y for _, y in few], weights=weights)
    assert mean == pytest.approx(np.mean([y for _, y in points]))
    assert thinned(points[:POINTS]) == points[:POINTS]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1, 1.0), (0.03, 0.9), (0.42, 0.44), (1e-6, 50.0), (3.0, 3.0), (1e-12, 1e12), (900, 1001)],
)
def test_ticks_of_a_logarithmic_axis_cover_the_range(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert found[0] <= low * (1 + 1e-9)
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 7
    for value in found:
        mantissa = value / 10 ** math.floor(math.log10(value) + 1e-9)
        assert any(mantissa == pytest.approx(m) for m in (1, 2, 5))


def test_equal_factors_are_equal_heights_on_a_logarithmic_axis() -> None:
    svg = render(Curve("x", "step", {"a": [(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.0)]}, log=True))
    found = re.search(r'points="([^"]+)"', svg)
    assert found is not None
    heights = [float(point.split(",")[1]) for point in found[1].split()]
    assert len(heights) == 3  # zero has no place on it
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
