"""A run exported whole: every graph, each precision, on the models that training builds."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mmprod.bundle import Place, open_bundle
from mmprod.errors import ConfigError
from mmprod.export import graph_file
from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.graph_file import ALLOWED, QUANTIZING, save_graph
from mmprod.export.pipeline import export_run
from mmprod.export.precision import CALIBRATED, PRECISIONS
from mmprod.export.value_types import walk
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import Array, example_inputs
from mmprod.runners.ort import OrtRunner
from mmprod.runners.torch import TorchRunner
from tests.export.tiny import CONFIG, DIMS, Exported

NAMES = tuple(build_catalog(DIMS, CONFIG.sampler))
Case = tuple[dict[str, Array], dict[str, Array]]


def onnx_path(exported: Exported, name: str, precision: str) -> Path:
    (found,) = exported.bundle.artefacts("onnx", name, precision)
    return exported.bundle.path(found)


def both(exported: Exported, name: str, precision: str, batch: int) -> Case:
    """Outputs of PyTorch and of ONNX Runtime on the same inputs."""
    spec = exported.bundle.specs[name]
    codec, fusion = exported.models.codec, exported.models.fusion
    module = build_module(name, codec=codec, fusion=fusion, dims=DIMS, sampler=CONFIG.sampler)
    inputs = example_inputs(spec, batch, seed=batch)
    graph = OrtRunner(spec, onnx_path(exported, name, precision), threads=1, precision=precision)
    return TorchRunner(spec, module)(inputs), graph(inputs)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("name", NAMES)
def test_fp32_graphs_say_what_torch_says(exported: Exported, name: str, batch: int) -> None:
    reference, found = both(exported, name, "fp32", batch)
    for output in exported.bundle.specs[name].outputs:
        a, b = reference[output.name], found[output.name]
        if output.role in ("codes", "tokens"):
            np.testing.assert_array_equal(a, b)
            assert len(np.unique(a)) > 2, "a constant answer would prove nothing"
        elif output.role == "pixels":
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
        else:
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("name", NAMES)
def test_fp16_graphs_stay_close(exported: Exported, name: str) -> None:
    reference, found = both(exported, name, "fp16", 16)
    for output in exported.bundle.specs[name].outputs:
        a, b = reference[output.name], found[output.name]
        if output.role == "logits":
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())
        elif output.role == "embedding":
            assert (a * b).sum(1).min() > 0.9999
        else:
            assert (np.abs(a.astype(int) - b.astype(int)) <= 1).mean() > 0.8


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("text_to_image", "image_to_text", "joint", "edit")]
)
def test_coarse_graphs_are_off_by_their_own_error(
    exported: Exported, name: str, precision: str
) -> None:
    reference, found = both(exported, name, precision, 4)
    for output in exported.bundle.specs[name].outputs:
        a, b = reference[output.name], found[output.name]
        if output.role == "logits":
            assert 0 < np.abs(a - b).max() < 0.2 * np.abs(a).max()
        elif output.role == "embedding":
            assert 0.95 < (a * b).sum(1).min() < 1
        elif output.role == "pixels":
            assert np.abs(a.astype(int) - b.astype(int)).mean() < 5
        else:
            assert (a == b).mean() > 0.5


def test_the_bundle_is_complete(exported: Exported) -> None:
    bundle = exported.bundle
    assert {(a.graph, a.precision) for a in bundle.artefacts("onnx")} == {
        (name, precision) for name in NAMES for precision in PRECISIONS
    }
    assert [a.graph for a in bundle.artefacts("reference")] == sorted(NAMES)
    assert (bundle.name, bundle.dims, bundle.sampler) == ("exported", DIMS, CONFIG.sampler)
    assert bundle.provenance["data"] == "f" * 64
    assert bundle.provenance["export"]["torch"] == torch.__version__
    (tokenizer,) = bundle.artefacts("tokenizer")
    assert json.loads(bundle.path(tokenizer).read_text()) == {"a": 1}
    assert [a.path for a in bundle.artefacts("config")] == ["config.toml"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_what_it_says(exported: Exported, name: str, precision: str) -> None:
    (artefact,) = exported.bundle.artefacts("onnx", name, precision)
    model = onnx.load(exported.bundle.path(artefact))
    onnx.checker.check_model(model, full_check=True)
    assert_precision(model, precision)
    assert artefact.meta["precision"] == precision_of(model)
    kinds = {"mixed": ("fp16",) if name.startswith("codec") else ("fp16", "int8")}
    for kind in kinds.get(precision, (precision,)):
        assert precision_of(model).get(kind, 0) > 2
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes["mmprod.graph"] == name
    assert notes["mmprod.precision"] == precision
    steps = exported.bundle.specs[name].loop_steps
    operators = [node.op_type for node, _ in walk(model.graph)]
    assert operators.count("Loop") == (1 if steps else 0)
    assert set(operators) - {"Loop"} <= (
        ALLOWED | QUANTIZING if precision in CALIBRATED else ALLOWED
    )
    assert model.opset_import[0].version == (23 if precision == "bf16" else 20)


def test_only_the_codebook_search_stays_fp32_in_fp16_graphs(exported: Exported) -> None:
    kept = {
        name: precision_of(onnx.load(onnx_path(exported, name, "fp16"))).get("fp32", 0)
        for name in NAMES
    }
    assert kept == {name: int(name in ("codec_encode", "image_to_text", "edit")) for name in NAMES}


def test_graphs_hold_no_trace_of_this_machine(exported: Exported) -> None:
    for artefact in exported.bundle.artefacts("onnx"):
        data = exported.bundle.path(artefact).read_bytes()
        for trace in (str(Path.cwd()), str(Path.home()), "site-packages", ".py"):
            assert trace.encode() not in data


def test_weights_keep_their_names(exported: Exported) -> None:
    model = onnx.load(onnx_path(exported, "fusion_step", "fp32"))
    names = {tensor.name for tensor in model.graph.initializer}
    fusion = exported.models.fusion
    by_tensor: dict[int, set[str]] = {}
    for name, parameter in fusion.named_parameters(remove_duplicate=False):
        if "attention." in name and parameter.ndim == 2:
            by_tensor.setdefault(id(parameter), set()).add(name)
    assert len(by_tensor) == 2 * (4 + 2 + 1)
    for aliases in by_tensor.values():
        assert len(aliases & names) == 1
    assert not any(name.endswith("_") for name in names if "connector" in name)


def test_equal_weights_are_stored_once(exported: Exported) -> None:
    sampler = onnx_path(exported, "text_to_image", "fp32").stat().st_size
    parts = sum(
        sum(p.nbytes for p in model.state_dict().values())
        for model in (exported.models.codec.decoder, exported.models.fusion)
    )
    assert sampler < parts + 400_000


def test_references_are_real_samples_with_torch_outputs(exported: Exported) -> None:
    for name, spec in exported.bundle.specs.items():
        (artefact,) = exported.bundle.artefacts("reference", name)
        stored = np.load(exported.bundle.path(artefact), allow_pickle=False)
        expected = {f"b{b}/in/{t.name}" for b in (1, 3) for t in spec.inputs}
        expected |= {f"b{b}/out/{t.name}" for b in (1, 3) for t in spec.outputs}
        if name == "codec_encode":
            expected |= {f"b{b}/{kind}/codes" for b in (1, 3) for kind in ("rivals", "changes")}
        assert set(stored.files) == expected
        graph = OrtRunner(spec, onnx_path(exported, name, "fp32"), threads=1)
        found = graph({t.name: stored[f"b3/in/{t.name}"] for t in spec.inputs})
        for output in spec.outputs:
            reference = stored[f"b3/out/{output.name}"].astype(np.float64)
            assert np.abs(found[output.name] - reference).max() <= 1
        if name == "image_to_text":
            np.testing.assert_array_equal(stored["b1/in/pixels"], exported.samples["pixels"][:1])
            np.testing.assert_array_equal(stored["b3/in/pixels"], exported.samples["pixels"][1:4])
        if name in ("fusion_step", "code_prior"):
            masked = stored["b3/in/codes"] == DIMS.codebook_size
            assert 0.2 < masked.mean() < 0.8
        if name == "fusion_step":
            tokens = stored["b3/in/tokens"]
            free = tokens == DIMS.vocabulary
            np.testing.assert_array_equal(tokens[~free], exported.samples["tokens"][1:4][~free])


def test_events_count_up(exported: Exported) -> None:
    for stage, total in (("trace", 16), ("write", 60), ("reference", 10)):
        found = [event for event in exported.events if event.stage == stage]
        assert [event.done for event in found] == list(range(1, total + 1))
        assert {event.total for event in found} == {total}
    stages = [event.stage for event in exported.events]
    assert sum(a != b for a, b in pairwise(stages)) == 2


def test_a_folder_with_content_is_not_touched(exported: Exported) -> None:
    before = (exported.bundle.root / "bundle.json").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        export_run(exported.run, exported.models, exported.bundle.root, samples={})
    assert (exported.bundle.root / "bundle.json").read_bytes() == before


def test_an_unknown_precision_is_refused_before_anything_is_made(
    exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="fp61") as caught:
        export_run(
            exported.run, exported.models, tmp_path / "b", precisions=("fp32", "fp61"), samples={}
        )
    assert "fp16" in caught.value.hint
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_an_aborted_export_leaves_things_as_they_were(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    if replace:
        shutil.copytree(exported.bundle.root, tmp_path / "b")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmprod.export.pipeline._trace", killed)
    with pytest.raises(KeyboardInterrupt):
        export_run(exported.run, exported.models, Place(tmp_path / "b", replace), samples={})
    if replace:
        assert open_bundle(tmp_path / "b").artefacts() == exported.bundle.artefacts()
    assert [path.name for path in tmp_path.iterdir()] == ["b"] * replace


def test_no_precision_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no precision"):
        export_run(exported.run, exported.models, tmp_path / "b", precisions=(), samples={})
    assert not (tmp_path / "b").exists()


def test_large_weights_go_beside_the_graph(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "INLINE_LIMIT", 10_000)
    model = onnx.load(onnx_path(exported, "codec_decode", "fp32"))
    written = save_graph(model, tmp_path / "codec_decode.fp32.onnx")
    assert [path.name for path in written] == [
        "codec_decode.fp32.onnx",
        "codec_decode.fp32.onnx.data",
    ]
    assert written[0].stat().st_size < written[1].stat().st_size
    spec = exported.bundle.specs["codec_decode"]
    inputs = example_inputs(spec, 2, seed=1)
    inside = OrtRunner(spec, onnx_path(exported, "codec_decode", "fp32"), threads=1)
    beside = OrtRunner(spec, written[0], threads=1)
    np.testing.assert_array_equal(inside(inputs)["pixels"], beside(inputs)["pixels"])
