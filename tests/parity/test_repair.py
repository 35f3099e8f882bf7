"""fp32 islands: found where half precision overflows, written into the bundle or left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError, ParityFailed
from mmprod.export.computed_types import precision_of
from mmprod.export.islands import ISLANDS, cast_with_islands
from mmprod.graphs.runner import example_inputs
from mmprod.parity.explain import explain
from mmprod.parity.islands import Island, sampler_island, search_islands
from mmprod.parity.repair import write_island
from mmprod.parity.report import ParityReport
from mmprod.parity.run import run_parity
from mmprod.runners.ort import OrtRunner
from tests.parity.exported import (
    export_some,
    overflow_in_fusion,
    overflowing_decoder,
)

GRAPH, MODULE = "codec_decode", "codec.decoder.layers.1.conv1"


@pytest.fixture
def overflowing(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(overflowing_decoder(tmp_path_factory), tmp_path / "bundle"))


def content(bundle: Bundle) -> dict[str, bytes]:
    files = (path for path in bundle.root.rglob("*") if path.is_file())
    return {str(path.relative_to(bundle.root)): path.read_bytes() for path in files}


def verdicts(bundle: Bundle) -> dict[str, str]:
    report = json.loads((bundle.root / "reports" / "parity.json").read_text())
    rows = [row for row in report["rows"] if row["leg"] == "torch-ort" and row["cases"]]
    return {f"{row['graph']} {row['precision']}": row["status"] for row in rows}


def half_check(bundle: Bundle) -> ParityReport:
    return run_parity(bundle, precisions=("fp16",))


def island_of(bundle: Bundle, folder: Path) -> Island:
    found = search_islands(bundle, explain(bundle, GRAPH, "fp16"), folder, cast_with_islands)
    assert found is not None
    return found


def test_an_overflowing_module_becomes_an_island_and_the_bundle_passes(
    overflowing: Bundle, tmp_path: Path
) -> None:
    assert verdicts(overflowing) == {f"{GRAPH} fp32": "pass", f"{GRAPH} fp16": "fail"}
    found = explain(overflowing, GRAPH, "fp16")
    assert found.cause is not None
    assert (found.block, found.cause.kind, found.islands) == (MODULE, "overflow", (MODULE,))
    island = island_of(overflowing, tmp_path)
    assert island.modules == (MODULE,) and not island.written
    assert island.after.bytes > island.before.bytes and island.after.ms > 0
    done = write_island(overflowing, island, tmp_path, half_check)
    assert done.written and done.verdict.startswith("pass")
    again = open_bundle(overflowing.root)
    assert verdicts(again) == {f"{GRAPH} fp32": "pass", f"{GRAPH} fp16": "pass"}
    (listed,) = again.artefacts(role="onnx", precision="fp16")
    assert listed.meta["islands"] == [MODULE]
    assert listed.meta["precision"]["fp32"] == 1
    model = onnx.load(again.path(listed))
    assert {p.key: p.value for p in model.metadata_props}[ISLANDS] == MODULE
    assert explain(again, GRAPH, "fp16").cause is None


def test_a_repair_that_does_not_pass_changes_nothing(overflowing: Bundle, tmp_path: Path) -> None:
    before = content(overflowing)
    island = island_of(overflowing, tmp_path)
    shutil.copyfile(overflowing.path(overflowing.artefacts(precision="fp16")[0]), island.path)
    done = write_island(overflowing, island, tmp_path, half_check)
    assert not done.written and done.verdict.startswith("fail: ")
    assert content(overflowing) == before


def full_disk(bundle: Bundle) -> ParityReport:
    half_check(bundle)
    raise OSError(28, "No space left on device")


def other_verdict(bundle: Bundle) -> ParityReport:
    report = half_check(bundle)
    rows = [replace(row, status="fail", reason="noise b8 seed 1") for row in report.rows]
    return replace(report, rows=tuple(rows))


@pytest.mark.parametrize(("check", "error"), [(full_disk, OSError), (other_verdict, ParityFailed)])
def test_what_goes_wrong_in_the_bundle_itself_is_undone(
    overflowing: Bundle,
    tmp_path: Path,
    check: Callable[[Bundle], ParityReport],
    error: type[Exception],
) -> None:
    plan = overflowing.root / "engines" / "rtx-sm86" / f"{GRAPH}.fp16.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"engine of the old graph")
    overflowing.add(plan, role="engine", graph=GRAPH, precision="fp16")
    overflowing.save()
    before = content(overflowing)
    with pytest.raises(error):
        write_island(overflowing, island_of(overflowing, tmp_path), tmp_path, check)
    assert content(overflowing) == before
    open_bundle(overflowing.root).verify()


def test_engines_of_the_old_graph_go_with_it(overflowing: Bundle, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        plan = overflowing.root / "engines" / "rtx-sm86" / f"{GRAPH}.{precision}.plan"
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_bytes(b"engine")
        overflowing.add(plan, role="engine", graph=GRAPH, precision=precision)
    overflowing.save()
    done = write_island(overflowing, island_of(overflowing, tmp_path), tmp_path, half_check)
    assert done.engines == 1
    left = open_bundle(overflowing.root).artefacts(role="engine")
    assert [artefact.precision for artefact in left] == ["fp32"]


def test_islands_that_cannot_be(overflowing: Bundle, tmp_path: Path) -> None:
    source = overflowing.path(overflowing.artefacts(role="onnx", precision="fp32")[0])
    spec = overflowing.specs[GRAPH]
    with pytest.raises(ConfigError, match="has no module nothing"):
        cast_with_islands(source, spec, "fp16", ["nothing"], tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="int8 graphs have no fp32 islands"):
        cast_with_islands(source, spec, "int8", [MODULE], tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.slow
def test_a_sampler_is_taken_apart_cast_and_put_together_again(tmp_path: Path) -> None:
    """Without islands it computes what the exporter's own fp16 sampler computes."""
    bundle = export_some(tmp_path / "bundle", ("edit",), ("fp32", "fp16"))
    spec = bundle.specs["edit"]
    source, wanted = (
        bundle.path(bundle.artefacts(role="onnx", precision=precision)[0])
        for precision in ("fp32", "fp16")
    )
    cast_with_islands(source, spec, "fp16", [], tmp_path / "edit.onnx")
    ours, theirs = onnx.load(tmp_path / "edit.onnx"), onnx.load(wanted)
    assert precision_of(ours) == precision_of(theirs)
    assert len(ours.graph.node) == len(theirs.graph.node)
    inputs = example_inputs(spec, 2, seed=5)
    got, expected = (OrtRunner(spec, path)(inputs) for path in (tmp_path / "edit.onnx", wanted))
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.slow
def test_a_sampler_gets_the_islands_of_its_plain_graphs(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    graphs = ("fusion_step", "text_to_image")
    bundle = export_some(root, graphs, ("fp32", "fp16"), overflow_in_fusion)
    guilty = explain(bundle, "fusion_step", "fp16")
    assert guilty.cause is not None and guilty.cause.kind == "overflow"
    found = search_islands(bundle, guilty, tmp_path, cast_with_islands)
    assert found is not None and found.modules[0] == "image.tower.0.attention.qkv"
    island = sampler_island(bundle, "text_to_image", [found], tmp_path, cast_with_islands)
    assert island is not None
    assert set(island.modules) == {f"fusion.{module}" for module in found.modules}
    done = write_island(bundle, island, tmp_path, half_check)
    assert done.written
    assert verdicts(open_bundle(root))["text_to_image fp16"] == "pass"
