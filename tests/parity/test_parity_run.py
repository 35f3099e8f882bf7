"""The check of whole bundles: a verdict for every leg, hashes of files, readable reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Array, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import sha256_file
from mmprod.parity import candidates
from mmprod.parity.arrays import Maps
from mmprod.parity.report import ParityReport, Row
from mmprod.parity.run import PAGE, Comparison, ParityEvent, run_parity
from mmprod.runners.cuda import Probe
from tests.parity.toy import SPECS, TOKENS, FakeRunner, add_onnx, decode, numpy_reference, stored


def row_of(report: ParityReport, graph: str, precision: str = "fp32", target: str = "") -> Row:
    leg = "torch-engine" if target else "torch-ort"
    (row,) = [
        row
        for row in report.select(leg=leg)  # type: ignore[arg-type]
        if (row.subject.graph, row.subject.precision, row.subject.target)
        == (graph, precision, target)
    ]
    return row


def add_engine(bundle: Bundle, graph: str, precision: str, target: str) -> None:
    path = bundle.root / "engines" / target / f"{graph}.{precision}.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{graph} {target}".encode())
    bundle.add(path, role="engine", graph=graph, precision=precision)
    bundle.save()


def test_stored_cases_without_a_reference(bundle: Bundle) -> None:
    report = run_parity(bundle)
    assert report.ok
    assert (report.count("pass"), report.count("fail")) == (2, 0)
    assert report.reference == "stored outputs of PyTorch" and report.seeds == 0
    for name in ("codec_decode", "embed_text"):
        row = row_of(report, name)
        assert (row.status, row.cases, row.samples) == ("pass", 2, 4)
        assert row.backend.startswith("onnxruntime")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["write_maps", "Bundle.save"])
def test_what_interrupts_the_writing_of_a_report_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in bundle.root.rglob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise error

    for _ in ("no report yet", "another one"):
        before = content()
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(f"mmprod.parity.run.{place}", fail)
            run_parity(open_bundle(bundle.root), precisions=("fp32", "fp16"))
        assert content() == before
        open_bundle(bundle.root).verify()
        run_parity(open_bundle(bundle.root))


def test_a_live_reference_adds_the_sweep_and_the_noise(bundle: Bundle) -> None:
    runners: list[FakeRunner] = []

    def reference(spec: GraphSpec) -> FakeRunner:
        runners.append(numpy_reference(spec))
        return runners[-1]

    report = run_parity(bundle, reference=reference, batches=(1, 3), seeds=3)
    assert report.ok and report.reference == "numpy"
    assert row_of(report, "codec_decode").cases == 2 + 1 + 6
    assert [runner.spec.name for runner in runners] == ["codec_decode", "embed_text"]
    assert all(runner.closed == 1 for runner in runners)


def test_the_live_reference_outranks_the_stored_outputs(bundle: Bundle) -> None:
    def other(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"pixels": 255 - decode(inputs)["pixels"]}

    def reference(spec: GraphSpec) -> Runner:
        return FakeRunner(spec, other) if spec.name == "codec_decode" else numpy_reference(spec)

    report = run_parity(bundle, reference=reference)
    assert not report.ok
    assert row_of(report, "codec_decode").status == "fail"
    assert row_of(report, "embed_text").status == "pass"


def test_every_leg_of_every_graph_has_a_verdict_with_a_reason(bundle: Bundle) -> None:
    report = run_parity(bundle, precisions=("fp32", "fp16"))
    subjects = [(r.subject.leg, r.subject.graph, r.subject.precision) for r in report.rows]
    assert sorted(subjects) == sorted(
        (leg, graph, precision)
        for leg in ("torch-ort", "torch-engine")
        for graph in SPECS
        for precision in ("fp32", "fp16")
    )
    for row in report.rows:
        assert row.status in ("pass", "fail", "not run") and row.reason
        assert row.advice or row.status == "pass"
    assert row_of(report, "codec_encode").reason == "not exported"
    assert row_of(report, "codec_decode", "fp16").reason == "not exported"
    assert row_of(report, "codec_decode", "fp16").status == "not run"


def test_engines_are_not_run_without_a_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(spec: GraphSpec, path: Path) -> Runner:
        raise EnvironmentMissing("not run: no CUDA device", hint="run it on the device")

    monkeypatch.setattr(candidates, "open_engine", no_device)
    add_engine(bundle, "codec_decode", "fp32", "rtx-sm86")
    add_engine(bundle, "codec_decode", "fp32", "rtx-sm120")
    report = run_parity(bundle)
    assert report.ok
    row = row_of(report, "codec_decode", target="rtx-sm86")
    assert (row.status, row.reason) == ("not run", "built for sm86, not run: no CUDA device")
    assert "sm120" in row_of(report, "codec_decode", target="rtx-sm120").reason
    assert row_of(report, "embed_text", target="rtx-sm86").reason == "no engine was built"
    assert "built for sm86, not run: no CUDA device" in read_text(bundle)


def test_the_real_engine_runner_says_what_is_missing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprod.runners.trt.find_device", lambda: Probe(reason="no driver"))
    add_engine(bundle, "codec_decode", "fp32", "rtx-sm86")
    row = row_of(run_parity(bundle), "codec_decode", target="rtx-sm86")
    assert (row.status, row.reason) == ("not run", "built for sm86, not run: no CUDA device")
    monkeypatch.setattr("mmprod.runners.trt.find_device", lambda: Probe("sm86", "a device"))
    row = row_of(run_parity(bundle), "codec_decode", target="rtx-sm86")
    assert row.status == "fail" and "codec_decode.fp32.json is missing" in row.reason


def test_device_providers_are_offered_on_a_device_and_never_fall_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> list[Row]:
        report = run_parity(bundle)
        return [row for row in report.rows if row.subject.target.startswith("ort-")]

    monkeypatch.setattr("mmprod.runners.ort.gpu_providers", lambda: ["cuda", "tensorrt"])
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: Probe(reason="no driver"))
    assert rows() == []
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: Probe("sm86", "a device"))
    found = rows()
    assert [row.subject.target for row in found] == ["ort-cuda", "ort-tensorrt"] * 2
    assert {row.status for row in found} == {"not run"}
    assert found[0].reason == "this ONNX Runtime has no CUDAExecutionProvider"
    assert found[0].subject.files, "the row says which file was not run"


def test_engines_are_compared_where_they_run(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_device(spec: GraphSpec, path: Path) -> Runner:
        assert path.read_bytes() == b"codec_decode rtx-sm86"
        return FakeRunner(spec, lambda inputs: {"pixels": decode(inputs)["pixels"] ^ 8}, "device")

    monkeypatch.setattr(candidates, "open_engine", on_device)
    add_engine(bundle, "codec_decode", "fp32", "rtx-sm86")
    report = run_parity(bundle)
    row = row_of(report, "codec_decode", target="rtx-sm86")
    assert not report.ok
    assert (row.status, row.backend) == ("fail", "device")
    assert "max_level 8" in row.reason and "build" in row.advice
    assert row_of(report, "codec_decode").status == "pass"


def test_nothing_compared_is_not_ok(bundle: Bundle) -> None:
    report = run_parity(bundle, precisions=("fp16",))
    assert report.count("fail") == 0 and report.count("pass") == 0
    assert not report.ok
    assert "NOTHING COMPARED" in read_text(bundle)


def test_graphs_without_stored_cases_are_not_run(bundle: Bundle) -> None:
    bundle.remove(bundle.root / "reference" / "embed_text.npz")
    bundle.save()
    report = run_parity(bundle)
    row = row_of(report, "embed_text")
    assert row.status == "not run" and "no stored cases" in row.reason
    assert report.ok, "the other graph passed"
    assert row_of(run_parity(bundle, reference=numpy_reference), "embed_text").status == "pass"


def test_a_precision_without_limits_is_not_run_when_found_and_refused_when_asked(
    bundle: Bundle,
) -> None:
    add_onnx(bundle, "embed_text", "int3")
    bundle.save()
    report = run_parity(bundle)
    row = row_of(report, "embed_text", "int3")
    assert row.status == "not run" and row.reason == "no parity limits are set for int3"
    with pytest.raises(ConfigError, match="int3") as caught:
        run_parity(bundle, precisions=("fp32", "int3"))
    assert "fp16" in caught.value.hint


def test_impossible_requests_are_refused_before_anything_runs(bundle: Bundle) -> None:
    before = (bundle.root / "bundle.json").read_bytes()
    with pytest.raises(ConfigError, match="batch 99"):
        run_parity(bundle, reference=numpy_reference, batches=(99,))
    for artefact in bundle.artefacts(role="onnx"):
        bundle.remove(bundle.root / artefact.path)
    with pytest.raises(ConfigError, match="no graphs"):
        run_parity(bundle)
    assert (bundle.root / "bundle.json").read_bytes() == before
    assert not (bundle.root / "reports").exists()


@pytest.mark.parametrize("name", ["onnx/codec_decode.fp32.onnx", "reference/codec_decode.npz"])
def test_a_changed_file_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.root / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        run_parity(bundle)


@pytest.mark.parametrize("role", ["onnx", "engine"])
def test_a_second_file_of_one_subject_is_refused(bundle: Bundle, role: str) -> None:
    add_engine(bundle, "codec_decode", "fp32", "rtx-sm89")
    first = bundle.path(bundle.artefacts(role=role, graph="codec_decode")[0])
    second = first.with_stem("second")
    second.write_bytes(first.read_bytes())
    bundle.add(second, role=role, graph="codec_decode", precision="fp32")
    with pytest.raises(IntegrityError, match=r"second.* is a second .* of .*codec_decode fp32"):
        run_parity(bundle)


def test_a_graph_that_does_not_load_fails_its_row(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "codec_decode.fp32.onnx"
    path.write_bytes(b"not a graph")
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.save()
    report = run_parity(bundle)
    row = row_of(report, "codec_decode")
    assert row.status == "fail" and row.reason.startswith("cannot be opened: onnx/codec_decode")
    assert row_of(report, "embed_text").status == "pass"
    assert str(bundle.root) not in read_text(bundle), "no path of this machine"


def test_weights_beside_the_graph_are_vouched_for_too(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "embed_text.fp32.onnx"
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location="embed_text.data", size_threshold=128
    )
    bundle.add(path, role="onnx", graph="embed_text", precision="fp32")
    bundle.add(
        path.with_name("embed_text.data"), role="onnx-data", graph="embed_text", precision="fp32"
    )
    bundle.save()
    row = row_of(run_parity(bundle), "embed_text")
    assert row.status == "pass"
    names = [entry.path for entry in row.subject.files]
    assert names == ["onnx/embed_text.fp32.onnx", "onnx/embed_text.data"]


def test_nan_from_a_graph_fails_though_the_reference_has_it_too(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "embed_text.fp32.onnx"
    model = onnx.load(path)
    table = next(weight for weight in model.graph.initializer if weight.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.full_like(TOKENS, np.nan), "table"))
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph="embed_text", precision="fp32")
    arrays = stored("embed_text")
    for key in [key for key in arrays if "/out/" in key]:
        arrays[key] = np.full_like(arrays[key], np.nan)
    reference = bundle.root / "reference" / "embed_text.npz"
    np.savez(reference, **arrays)  # type: ignore[arg-type]
    bundle.add(reference, role="reference", graph="embed_text")
    bundle.save()
    row = row_of(run_parity(bundle), "embed_text")
    assert row.status == "fail" and "reference: embedding has NaN in 5 of 5 places" in row.reason


def test_the_bundle_is_whole_afterwards_and_again_after_a_second_run(bundle: Bundle) -> None:
    run_parity(bundle)
    opened = open_bundle(bundle.root)
    reports = [artefact.path for artefact in opened.artefacts(role="report")]
    assert reports == ["reports/parity.json", "reports/parity.md", "reports/parity.npz"]
    run_parity(opened, reference=numpy_reference, seeds=1)
    again = open_bundle(bundle.root)
    assert [artefact.path for artefact in again.artefacts(role="report")] == reports
    assert again.summaries["parity"]["reference"] == "numpy"
    assert again.artefacts(role="onnx")[0].meta == {"note": "kept"}


def test_a_page_never_outlives_its_report(bundle: Bundle) -> None:
    def page(data: Mapping[str, Any], maps: Maps) -> str:
        assert data["pass"] == 2 and ("torch-ort codec_decode fp32", "pixels") in maps
        return "<p>page"

    Comparison(bundle, page=page).run()
    assert (bundle.root / PAGE).read_text() == "<p>page"
    assert PAGE in [artefact.path for artefact in open_bundle(bundle.root).artefacts("report")]
    run_parity(bundle)
    assert not (bundle.root / PAGE).exists(), "it spoke of the report before"
    open_bundle(bundle.root)


def test_a_page_that_cannot_be_made_leaves_the_report_before(bundle: Bundle) -> None:
    def broken(data: Mapping[str, Any], maps: Maps) -> str:
        raise ZeroDivisionError

    run_parity(bundle)
    before = (bundle.root / "reports" / "parity.json").read_bytes()
    with pytest.raises(ZeroDivisionError):
        Comparison(bundle, reference=numpy_reference, page=broken).run()
    assert (bundle.root / "reports" / "parity.json").read_bytes() == before
    open_bundle(bundle.root)


def test_the_report_holds_hashes_margins_limits_and_counts(bundle: Bundle) -> None:
    report = run_parity(bundle, reference=numpy_reference, batches=(1, 3), seeds=2)
    data = json.loads((bundle.root / "reports" / "parity.json").read_text())
    assert data == json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (data["format"], data["ok"], data["pass"], data["fail"]) == (1, True, 2, 0)
    assert data["pass"] + data["fail"] + data["not run"] == len(data["rows"])
    assert {limit["precision"] for limit in data["limits"]} >= {"fp32", "fp16"}
    row = next(r for r in data["rows"] if r["graph"] == "codec_decode" and r["status"] == "pass")
    (file,) = row["files"]
    assert file["sha256"] == sha256_file(bundle.root / file["path"])
    (check,) = row["outputs"][0]["checks"]
    assert check["ok"] and check["margin"] == check["limit"] - check["value"]
    summary = open_bundle(bundle.root).summaries["parity"]
    assert summary["ok"] and len(summary["rows"]) == len(report.rows)
    passed = [r for r in summary["rows"] if r["status"] == "pass"]
    assert passed[0]["sha256"] == {file["path"]: file["sha256"]}


def read_text(bundle: Bundle) -> str:
    return (bundle.root / "reports" / "parity.md").read_text()


def test_the_table_lines_up_as_plain_text(bundle: Bundle) -> None:
    run_parity(bundle, precisions=("fp32", "fp16"))
    text = read_text(bundle)
    absent = 2 * 2 * len(SPECS) - 2
    assert text.startswith(f"# Parity of toy: ok (2 pass, 0 fail, {absent} not run)")
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = block.splitlines()
            columns = lines[1].count("|") - 2
            bars = {
                tuple(i for i, char in enumerate(line) if char == "|")[:columns] for line in lines
            }
            assert len(bars) == 1, block
    for part in ("## What to do next", "## Figures", "## Files", "## Limits"):
        assert part in text
    assert sha256_file(bundle.root / "onnx" / "codec_decode.fp32.onnx") in text
    assert "Run by onnxruntime" in text
    assert "mmprod export RUN --precision fp16" in text


def test_progress_is_told(bundle: Bundle) -> None:
    events: list[ParityEvent] = []
    report = run_parity(bundle, on_event=events.append)
    assert [event.graph for event in events if event.rows] == list(SPECS)
    assert tuple(row for event in events for row in event.rows) == report.rows
    counted = [(e.done, e.total) for e in events if e.graph == "codec_decode" and not e.rows]
    assert counted == [(1, 2), (2, 2)]


def test_the_package_needs_neither_torch_nor_onnx_nor_onnxruntime() -> None:
    names = "run, selftest, worker, worker_child, trials, merge, overflow, sabotage, render, "
    names += "check, candidates, compare, limits, "
    names += "cases, report, accept, rerun, arrays, openers, half"
    code = (
        f"import sys; from mmprod.parity import {names}; "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
