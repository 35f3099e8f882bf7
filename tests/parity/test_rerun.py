"""The last report's run again: the same request, and every change named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import write_json
from mmprod.parity.arrays import ARRAYS, read_maps
from mmprod.parity.merge import REPORT
from mmprod.parity.report import ParityReport
from mmprod.parity.rerun import Change, changes, last_request
from mmprod.parity.run import run_parity
from tests.parity.toy import add_onnx, numpy_reference


def again(bundle: Bundle) -> tuple[ParityReport, list[Change]]:
    request = last_request(bundle)
    report = run_parity(
        bundle,
        reference=numpy_reference if request.live else None,
        precisions=request.precisions,
        batches=request.batches,
        seeds=request.seeds,
    )
    return report, changes(request, report)


def test_no_report_is_said(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="no parity report") as caught:
        last_request(bundle)
    assert caught.value.hint == "mmprod parity run BUNDLE"


def test_the_request_is_read_back(bundle: Bundle) -> None:
    run_parity(bundle, reference=numpy_reference, precisions=("fp32",), batches=(2,), seeds=3)
    request = last_request(open_bundle(bundle.root))
    assert request.live and request.same_limits
    assert (request.precisions, request.batches, request.seeds) == (("fp32",), (2,), 3)
    assert request.reference == "numpy"


def test_rows_kept_from_earlier_runs_are_not_asked_for_again(bundle: Bundle) -> None:
    add_onnx(bundle, "embed_text", "fp16")
    bundle.save()
    run_parity(bundle, precisions=("fp16",))
    run_parity(bundle, precisions=("fp32",))
    assert last_request(bundle).precisions == ("fp32",)


def test_nothing_changes_when_nothing_changed(bundle: Bundle) -> None:
    run_parity(bundle)
    _, found = again(bundle)
    assert found and {change.verdict for change in found} == {"same"}
    assert not any(change.files_changed for change in found)


def test_a_graph_that_was_damaged_since_is_a_new_failure(bundle: Bundle) -> None:
    run_parity(bundle)
    add_noise(bundle)
    report, found = again(bundle)
    assert not report.ok
    (failed,) = [change for change in found if change.verdict == "new failure"]
    assert failed.subject == "torch-ort embed_text fp32" and failed.files_changed
    assert "is not met" in failed.reason
    before, after = failed.figures["embedding cosine"]
    assert before is not None and after is not None and before > after
    _, found = again(bundle)
    assert not [change for change in found if change.verdict == "new failure"], "it failed before"
    add_onnx(bundle, "embed_text", "fp32")
    bundle.save()
    _, found = again(bundle)
    assert [c.subject for c in found if c.verdict == "recovered"] == ["torch-ort embed_text fp32"]


def test_another_runner_is_named(bundle: Bundle) -> None:
    report = run_parity(bundle)
    request = last_request(bundle)
    rows = [
        replace(row, backend=row.backend and f"{row.backend}, worker: no network")
        for row in report.rows
    ]
    found = changes(request, replace(report, rows=tuple(rows)))
    assert not any(change.backend_changed for change in found), "a worker is no other runner"
    rows = [replace(row, backend=row.backend and "onnxruntime 99") for row in report.rows]
    found = changes(request, replace(report, rows=tuple(rows)))
    changed = [change for change in found if change.backend_changed]
    assert len(changed) == 2 and {change.backends[1] for change in changed} == {"onnxruntime 99"}


@pytest.mark.parametrize(
    "content", [[], {}, {"format": 99}, {"format": 1}, {"format": 1, "rows": 3}]
)
def test_a_report_that_is_none_is_refused(bundle: Bundle, content: Any) -> None:
    path = bundle.root / REPORT
    write_json(path, content)
    bundle.add(path, role="report")
    bundle.save()
    with pytest.raises(IntegrityError):
        last_request(bundle)


def test_a_report_that_differs_from_the_manifest_is_refused(bundle: Bundle) -> None:
    run_parity(bundle)
    path = bundle.root / REPORT
    path.write_text(json.dumps({**json.loads(path.read_text()), "seeds": 7}))
    with pytest.raises(IntegrityError):
        last_request(bundle)


def test_maps_outlive_a_run_over_another_precision(bundle: Bundle) -> None:
    add_onnx(bundle, "embed_text", "fp16")
    bundle.save()
    for precision in ("fp16", "fp32"):
        run_parity(bundle, precisions=(precision,))
    found = read_maps(open_bundle(bundle.root))
    assert ("torch-ort embed_text fp16", "embedding") in found
    assert set(found["torch-ort codec_decode fp32", "pixels"]) == {
        "heat",
        "reference",
        "candidate",
    }
    write_json(bundle.root / REPORT, {})
    bundle.add(bundle.root / REPORT, role="report")
    assert read_maps(bundle) == {}, "they belong to another report by now"


def test_maps_that_cannot_be_read_are_refused(bundle: Bundle) -> None:
    run_parity(bundle)
    path = bundle.root / ARRAYS
    path.write_bytes(path.read_bytes()[:200])
    bundle.add(path, role="report")
    bundle.save()
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        run_parity(bundle)
    assert caught.value.hint


def add_noise(bundle: Bundle) -> None:
    """Another weight in embed_text."""
    path = bundle.root / "onnx" / "embed_text.fp32.onnx"
    model = onnx.load(path)
    (weight,) = [w for w in model.graph.initializer if w.name == "to_vector"]
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph="embed_text", precision="fp32")
    bundle.save()
