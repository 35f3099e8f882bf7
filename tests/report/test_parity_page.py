"""The page of a parity report: all of it in one file, every difference visible, none invented."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mmprod.report.parity import paint, render_parity_page

MEANINGS = {"pixels": "levels of 255", "codes": "share of samples"}
CHECK = {"figure": "agreement", "bound": ">=", "limit": 1.0, "value": 0.9, "ok": False}


def row(graph: str, role: str, status: str, **more: Any) -> dict[str, Any]:
    output = {
        "name": role,
        "role": role,
        "figures": {"agreement": 0.9, "differing_samples": 1.0},
        "checks": [CHECK],
        "worst": {"case": "stored b3 <b>", "index": [0], "reference": 1.0, "candidate": 2.0},
    }
    return {
        "leg": "torch-ort",
        "graph": graph,
        "precision": "fp32",
        "target": "",
        "status": status,
        "reason": "because",
        "advice": "",
        "cases": 2,
        "samples": 4,
        "files": [{"path": f"onnx/{graph}.onnx", "sha256": "ab" * 32, "bytes": 1}],
        "outputs": [output],
        **more,
    }


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    limit = {
        "role": "codes",
        "precision": "fp32",
        "kind": "plain",
        "figure": "agreement",
        "bound": ">=",
        "value": 1.0,
        "reason": "the same weights must pick the same ids",
    }
    other = {**limit, "precision": "fp16", "reason": "nobody asked for this one"}
    return {
        "ok": False,
        "pass": 0,
        "fail": len(rows),
        "not run": 0,
        "bundle": "toy <script>",
        "reference": "stored outputs",
        "batches": [],
        "seeds": 0,
        "limits": [limit, other],
        "rows": list(rows),
    }


@pytest.fixture
def page() -> str:
    heat = np.zeros((2, 3), np.float32)
    heat[1, 2] = 0.5
    picture = np.zeros((4, 4, 3), np.uint8)
    maps = {
        ("torch-ort codec_encode fp32", "codes"): {"heat": heat},
        ("torch-ort codec_decode fp32", "pixels"): {
            "heat": np.full((4, 4), 7, np.float32),
            "reference": picture,
            "candidate": picture + 7,
        },
        ("torch-ort embed_text fp32", "codes"): {"heat": heat * 0},
    }
    rows = [
        row("codec_encode", "codes", "fail"),
        row("codec_decode", "pixels", "fail"),
        row("embed_text", "codes", "pass"),
        row("joint", "codes", "not run", outputs=[]),
    ]
    return render_parity_page(report(*rows), maps, MEANINGS)


def test_it_is_one_file_without_script_or_network(page: str) -> None:
    assert "default-src 'none'" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert "toy &lt;script&gt;" in page and "stored b3 &lt;b&gt;" in page
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]+)"', page))


def test_differences_are_drawn_and_equal_outputs_are_said(page: str) -> None:
    assert page.count("<img") == 4, "two maps and the two pictures of the worst sample"
    assert (
        "2 x 3 cases x positions, largest 0.5, darkest red 1" in page and "share of samples" in page
    )
    assert "4 x 4 pixels, largest 7, darkest red 7" in page
    assert "codes fp32: equal everywhere, in 2 cases" in page
    assert "Where joint differs" not in page, "nothing was compared"


def test_verdicts_limits_and_reasons_are_there(page: str) -> None:
    assert "FAILED" in page and "because" in page
    assert "&gt;= 1" in page and '<td class="bad">fail</td>' in page
    assert "the same weights must pick the same ids" in page
    assert "nobody asked for this one" not in page
    assert "ab" * 32 in page


def test_no_difference_is_white_and_the_smallest_is_not() -> None:
    painted = paint(np.array([[0.0, 1e-6, 1.0]], np.float32), 1.0)
    assert painted.shape == (1, 3, 3) and painted.dtype == np.uint8
    assert painted[0, 0].tolist() == [255, 255, 255]
    assert (painted[0, 1] < 245).any()
    assert painted[0, 2].tolist() == [150, 10, 20]
    assert (paint(np.zeros((2, 2), np.float32), 0.0) == 255).all()


@pytest.mark.parametrize(("largest", "darkest"), [(1e-7, 0.001), (0.5, 0.5)])
def test_a_map_within_its_limit_is_pale(largest: float, darkest: float) -> None:
    made = row("fusion_step", "logits", "pass")
    made["outputs"][0]["checks"] = [{**CHECK, "figure": "max_abs", "bound": "<=", "limit": 0.001}]
    heat = np.full((1, 2), largest, np.float32)
    maps = {("torch-ort fusion_step fp32", "logits"): {"heat": heat}}
    page = render_parity_page(report(made), maps, {})
    assert f"largest {largest:.4g}, darkest red {darkest:.4g}" in page
    painted = paint(heat, darkest)
    assert bool((painted[..., 1] > 200).all()) is (largest < darkest)
