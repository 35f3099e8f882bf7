"""Runs over a part of a bundle beside what earlier runs said."""

from __future__ import annotations

import json

import onnx
import pytest

from mmprod.bundle import Bundle
from mmprod.parity import merge
from mmprod.parity.report import ParityReport, Row
from mmprod.parity.run import run_parity
from mmprod.parity.sabotage import damage
from tests.parity.toy import add_onnx


def row_of(report: ParityReport, graph: str, precision: str) -> Row:
    (row,) = [
        row
        for row in report.select(leg="torch-ort")
        if (row.subject.graph, row.subject.precision) == (graph, precision)
    ]
    return row


@pytest.fixture
def judged(bundle: Bundle) -> Bundle:
    """embed_text passed in fp32 and failed in fp16."""
    add_onnx(bundle, "embed_text", "fp16")
    damage(bundle, "zero_row", "embed_text", "fp16")
    assert not run_parity(bundle).ok
    return bundle


def test_a_failure_outlives_a_run_over_another_precision(judged: Bundle) -> None:
    for _ in range(2):
        report = run_parity(judged, precisions=("fp32",))
        row = row_of(report, "embed_text", "fp16")
        assert row.status == "fail" and not report.ok
        assert row.reason.count("[earlier run: stored outputs of PyTorch]") == 1
        assert row.outputs[0].worst is not None and not row.outputs[0].ok
        assert row_of(report, "embed_text", "fp32").status == "pass"
    data = json.loads((judged.root / "reports" / "parity.json").read_text())
    assert data["fail"] == 1 and data == json.loads(json.dumps(report.as_dict()))
    assert not judged.summaries["parity"]["ok"]


def test_a_new_verdict_takes_the_place_of_the_earlier_one(judged: Bundle) -> None:
    add_onnx(judged, "embed_text", "fp16")
    judged.save()
    report = run_parity(judged, precisions=("fp16",))
    row = row_of(report, "embed_text", "fp16")
    assert row.status == "pass" and "[earlier run" not in row.reason
    assert row_of(report, "codec_decode", "fp32").status == "pass", "kept"


def test_a_file_that_changed_has_no_verdict(judged: Bundle) -> None:
    path = judged.root / "onnx" / "embed_text.fp16.onnx"
    model = onnx.load(path)
    model.doc_string = "another file"
    onnx.save(model, path)
    judged.add(path, role="onnx", graph="embed_text", precision="fp16")
    judged.save()
    row = row_of(run_parity(judged, precisions=("fp32",)), "embed_text", "fp16")
    assert row.status == "not run"
    assert row.reason == "no verdict for this file: it changed after its comparison"


def test_files_that_were_never_compared_are_named(bundle: Bundle) -> None:
    add_onnx(bundle, "embed_text", "fp16")
    plan = bundle.root / "engines" / "rtx-sm86" / "embed_text.fp16.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"plan")
    bundle.add(plan, role="engine", graph="embed_text", precision="fp16")
    bundle.save()
    report = run_parity(bundle, precisions=("fp32",))
    found = {str(r.subject): r.status for r in report.rows if r.reason.startswith("no verdict")}
    assert found == {
        "torch-ort embed_text fp16": "not run",
        "torch-engine embed_text fp16 rtx-sm86": "not run",
    }


def test_verdicts_by_other_limits_are_dropped(
    judged: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(merge, "limits_table", lambda: [])
    row = row_of(run_parity(judged, precisions=("fp32",)), "embed_text", "fp16")
    assert row.reason == "no verdict for this file"
    assert "other limits" in caplog.text
