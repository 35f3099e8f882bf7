"""`mmprod bench run` and `mmprod bench compare`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle
from mmprod.parity.report import limits_sha256
from mmprod.parity.run import run_parity
from tests.parity.toy import make_toy

from .conftest import Mmprod, export_graphs


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "bundle", ["codec_decode"]).root


def test_no_figures_without_a_parity_pass(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    result = mmprod("bench", "run", bundle, "--batch", 1, "--json", "--out", tmp_path / "a.json")
    assert result.code == 5
    assert "mmprod parity run" in result.err
    (row,) = result.json()["rows"]
    assert (row["status"], row["graph_only"]) == ("void", None)
    assert "no parity pass on this file hash" in row["reason"]


def test_measure_then_compare(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    from mmprod.bundle import open_bundle

    run_parity(open_bundle(bundle))
    target = tmp_path / "out" / "a.json"
    result = mmprod("bench", "run", bundle, "--batch", "1,2", "--runs", 3, "--out", target)
    assert result.code == 0, result.err
    assert "2 rows measured" in result.out
    report = json.loads(target.read_text())
    assert [row["batch"] for row in report["rows"]] == [1, 2]
    assert (tmp_path / "out" / "a.codec_decode.svg").read_text().startswith("<svg")

    same = mmprod("bench", "compare", target, target, "--json")
    assert (same.code, same.json()["ok"]) == (0, True)
    for row in report["rows"]:
        row["graph_only"]["p50_ms"] *= 1.2
    slower = tmp_path / "b.json"
    slower.write_text(json.dumps(report))
    assert mmprod("bench", "compare", target, slower, "--max-regress", "25%").code == 0
    worse = mmprod("bench", "compare", target, slower, "--max-regress", "5%")
    assert worse.code == 6
    assert "+20.0%" in worse.err
    report["machine"]["processor"] = "Another"
    slower.write_text(json.dumps(report))
    refused = mmprod("bench", "compare", target, slower)
    assert refused.code == 2
    assert "Another" in refused.err
    assert mmprod("bench", "compare", target, slower, "--other-machine").code == 6


def test_kept_figures_are_shown_by_inspect(mmprod: Mmprod, bundle: Path, tmp_path: Path) -> None:
    from mmprod.bundle import open_bundle

    run_parity(open_bundle(bundle))
    asked = ("bench", "run", bundle, "--batch", 2, "--runs", 2, "--out", tmp_path / "a.json")
    assert mmprod(*asked).code == 0
    assert "bench" not in open_bundle(bundle).summaries
    assert mmprod(*asked, "--keep").code == 0
    (row,) = open_bundle(bundle).summaries["bench"]["rows"]
    (graph,) = open_bundle(bundle).artefacts(role="onnx")
    assert row["sha256"] == {graph.path: graph.sha256}
    assert row["p50_ms"] > 0
    shown = mmprod("bundle", "inspect", bundle)
    assert str(row["p50_ms"])[:4] in shown.out


def bundle_of(run: Path, folder: Path) -> Bundle:
    """`text_to_image` of a run with the graphs of its host loop, and a pass for each file."""
    bundle, opened, _ = export_graphs(run, folder, ("text_to_image", "fusion_step", "codec_decode"))
    rows = []
    for graph in bundle.artefacts(role="onnx"):
        row: dict[str, Any] = {"leg": "torch-ort", "graph": graph.graph, "precision": "fp32"}
        row |= {"target": "", "status": "pass", "reason": "by hand"}
        rows.append(row | {"sha256": {graph.path: graph.sha256}})
    shutil.copy(opened.tokenizer_path, folder / "tokenizer.json")
    bundle.add(folder / "tokenizer.json", role="tokenizer")
    given = {"ok": True, "limits_sha256": limits_sha256(), "rows": rows}
    bundle.put_summary("parity", given)
    bundle.save()
    return bundle


@pytest.mark.slow
def test_against_the_run_it_came_from(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    bundle = bundle_of(run, tmp_path / "b")
    asked = ("--graph", "text_to_image", "--batch", 1, "--runs", 3, "--against", run)
    result = mmprod("bench", "run", bundle.root, *asked, "--json", "--out", tmp_path / "a.json")
    assert result.code == 0, result.err
    rows = {row["subject"]: row for row in result.json()["rows"]}
    assert list(rows) == ["onnxruntime", "torch eager", "torch compile", "host loop"]
    for subject in ("onnxruntime", "torch eager", "host loop"):
        assert rows[subject]["status"] == "measured", rows[subject]["reason"]
        assert rows[subject]["end_to_end"]["runs"] == 3
    eager, own = (rows[s]["graph_only"]["p50_ms"] for s in ("torch eager", "onnxruntime"))
    found = rows["onnxruntime"]["times_as_fast"]
    assert found["torch eager"] == pytest.approx(eager / own, rel=0.01)
    assert "host loop" in found
    if rows["torch compile"]["status"] == "measured":
        assert "compiled" in rows["torch compile"]["backend"]
    else:  # no compiler for C++ here
        assert rows["torch compile"]["reason"]


def test_another_run_is_refused(mmprod: Mmprod, run: Path, bundle: Path) -> None:
    result = mmprod("bench", "run", bundle, "--against", run, "--out", bundle.parent / "a.json")
    assert result.code == 2
    assert "is not the run of" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "list of sizes"),
        (["--batch", "99"], "1 to 16"),
        (["--graph", "nonsense"], "nonsense"),
        (["--precision", "fp8"], "fp8"),
        (["--peers", "eager"], "--against"),
    ],
)
def test_bad_requests(arguments: list[str], said: str, mmprod: Mmprod, bundle: Path) -> None:
    result = mmprod("bench", "run", bundle, *arguments, "--out", bundle.parent / "a.json")
    assert result.code == 2
    assert said in result.err
    assert not (bundle.parent / "a.json").exists()


@pytest.mark.parametrize("percent", ["x", "-1%", "nan"])
def test_bad_percentage(percent: str, mmprod: Mmprod, tmp_path: Path) -> None:
    result = mmprod("bench", "compare", tmp_path, tmp_path, f"--max-regress={percent}")
    assert result.code == 2
    assert "percentage" in result.err


def test_a_damaged_bundle_is_refused(mmprod: Mmprod, bundle: Path) -> None:
    path = next((bundle / "onnx").glob("*.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    assert mmprod("bench", "run", bundle, "--out", bundle.parent / "a.json").code == 4
