"""Every figure of a bundle says what it was measured on, and whether that still lies there."""

from __future__ import annotations

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.figures import Figure, figures
from mmprod.errors import IntegrityError

GRAPH = "onnx/codec_encode.fp32.onnx"
PLAN = "engines/rtx-sm86/codec_encode.fp32.plan"


def by_name(bundle: Bundle) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(bundle)}


def replace(bundle: Bundle, path: str, content: bytes) -> None:
    (artefact,) = (a for a in bundle.artefacts() if a.path == path)
    bundle.path(artefact).write_bytes(content)
    about = {"graph": artefact.graph, "precision": artefact.precision}
    bundle.add(bundle.path(artefact), role=artefact.role, **about)


def test_each_figure_names_its_source_and_its_files(signed: Bundle) -> None:
    found = by_name(signed)
    assert set(found) == {
        "codec psnr",
        "parity torch-ort codec_encode fp32",
        "engine codec_encode fp32 rtx-sm86",
        "bench onnxruntime codec_encode fp32, batch 1",
    }
    training = found["codec psnr"]
    assert (training.value, training.state) == ("20.5", "of the run")
    assert "step 8 of 9" in training.source
    assert "d" * 16 in training.source
    assert set(training.files) == {"weights.safetensors"}
    others = [figure for figure in found.values() if figure is not training]
    assert {figure.state for figure in others} == {"current"}
    hashes = {a.path: a.sha256 for a in signed.artefacts()}
    for figure in others:
        assert all(hashes[path] == digest for path, digest in figure.files.items())
    assert set(found["engine codec_encode fp32 rtx-sm86"].files) == {GRAPH, PLAN}
    assert "rtx 1.7; built, not run" in found["engine codec_encode fp32 rtx-sm86"].source
    bench = found["bench onnxruntime codec_encode fp32, batch 1"]
    assert "p50 1.5 ms" in bench.value
    assert "a processor, 2 cores, onnxruntime 1.2; runs 9" in bench.source


def test_figures_of_other_files_are_marked(signed: Bundle) -> None:
    replace(signed, GRAPH, b"another graph")
    states = {figure.name.partition(" ")[0]: figure.state for figure in figures(signed)}
    assert states["parity"] == states["engine"] == states["bench"] == "outdated"


def test_an_engine_is_outdated_by_a_new_plan_or_without_its_notes(signed: Bundle) -> None:
    replace(signed, PLAN, b"another plan")
    assert by_name(signed)["engine codec_encode fp32 rtx-sm86"].state == "outdated"
    other = open_bundle(signed.root, verify=False)
    other.remove(other.root / PLAN.replace(".plan", ".json"))
    assert by_name(other)["engine codec_encode fp32 rtx-sm86"].state == "outdated"


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"onnx": [{"path": 1}]}'])
def test_notes_that_name_no_graph_are_refused(signed: Bundle, content: bytes) -> None:
    replace(signed, PLAN.replace(".plan", ".json"), content)
    with pytest.raises(IntegrityError, match="which graph"):
        figures(signed)


def test_a_bench_of_the_run_itself_says_so(signed: Bundle) -> None:
    bench = signed.summaries["bench"]
    (row,) = bench["rows"]
    torch = {**row, "subject": "torch eager", "sha256": {"weights.safetensors": "0" * 64}}
    another = {**torch, "graph": "embed_text", "sha256": {"weights.safetensors": "1" * 64}}
    signed.put_summary("bench", {**bench, "rows": [torch, another]})
    found = by_name(signed)
    assert found["bench torch eager codec_encode fp32, batch 1"].state == "of the run"
    assert found["bench torch eager embed_text fp32, batch 1"].state == "outdated"


def test_what_was_not_run_is_no_figure(signed: Bundle) -> None:
    parity = signed.summaries["parity"]
    rows = [{**parity["rows"][0], "status": "not run"}]
    signed.put_summary("parity", {**parity, "rows": rows})
    assert not [name for name in by_name(signed) if name.startswith("parity")]


def test_a_provenance_in_another_form_gives_no_figures_and_no_crash(signed: Bundle) -> None:
    for stages in (None, [1], {"codec": 3}, {"codec": {"metrics": 1}}):
        signed.provenance["stages"] = stages
        assert "codec psnr" not in by_name(signed)
