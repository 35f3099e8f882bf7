"""Bisection of graphs: the right block, the right cause, and the cure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.bisect import bisect, border_values, relative_error
from mmprod.parity.cases import Case, stored_cases
from mmprod.parity.causes import find_cause
from mmprod.parity.explain import SHARED, explain, plain_graphs
from mmprod.parity.faults import NUMERIC, find_fault, inject
from mmprod.parity.run import run_parity
from mmprod.parity.sabotage import copy_graph
from mmprod.parity.surgery import OUTSIDE
from tests.parity.exported import export_some
from tests.parity.toy import SPECS

GRAPH = "codec_decode"
NAMES = (
    *("quantizer/Gather_0", "layers.0/MatMul_1", "layers.1/Mul_2", "layers.1/Add_3"),
    *("Clip_4", "Round_5", "Reshape_6", "Cast_7"),
)


@pytest.fixture
def named(bundle: Bundle) -> Bundle:
    """The toy bundle with nodes named by blocks, as the exporter does."""
    path = bundle.root / "onnx" / f"{GRAPH}.fp32.onnx"
    model = onnx.load(path)
    for node, name in zip(model.graph.node, NAMES, strict=True):
        node.name = name
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph=GRAPH, precision="fp32")
    bundle.save()
    return bundle


def cases(bundle: Bundle, graph: str = GRAPH) -> list[Case]:
    return list(stored_cases(bundle.root / "reference" / f"{graph}.npz", bundle.specs[graph]))


def graph_file(bundle: Bundle, graph: str = GRAPH, precision: str = "fp32") -> Path:
    return bundle.root / "onnx" / f"{graph}.{precision}.onnx"


def test_borders_are_the_values_that_another_block_reads(named: Bundle) -> None:
    assert border_values(onnx.load(graph_file(named))) == {
        "entries": "quantizer",
        "projected": "layers.0",
        "shifted": "layers.1",
        "pixels": "(graph)",
    }


def test_equal_graphs_have_no_block_to_blame(named: Bundle) -> None:
    found = bisect(graph_file(named), graph_file(named), cases(named), "fp32")
    assert found.first is None
    assert [(block.block, block.error) for block in found.blocks] == [
        ("quantizer", 0.0),
        ("layers.0", 0.0),
        ("layers.1", 0.0),
        ("(graph)", 0.0),
    ]


@pytest.mark.parametrize(
    ("fault", "block", "kind"),
    [
        ("swap_rows", "quantizer", "weight differs"),
        ("put_nan", "layers.0", "weight differs"),
        ("tf32", "layers.0", "TF32"),
        ("wrong_scale", "layers.1", "constant differs"),
        ("bgr", "(graph)", "structure differs"),
    ],
)
def test_block_and_cause_of_a_fault_are_named(
    named: Bundle, tmp_path: Path, fault: str, block: str, kind: str
) -> None:
    copy = copy_graph(named, GRAPH, "fp32", tmp_path / "copy")
    assert inject(copy, find_fault(fault), GRAPH).block == block
    found = explain(copy, GRAPH, "fp32", graph_file(named))
    assert found.block == block
    assert found.cause is not None and found.cause.kind == kind
    assert found.islands == ()
    assert found.as_dict()["block"] == block


def half(bundle: Bundle, factor: float) -> Path:
    """The toy decoder with its product in fp16; its weight times `factor`, in both graphs."""
    path = graph_file(bundle)
    model = onnx.load(path)
    weights = {w.name: w for w in model.graph.initializer}
    values = numpy_helper.to_array(weights["to_pixels"]) * np.float32(factor)
    weights["to_pixels"].CopyFrom(numpy_helper.from_array(values, "to_pixels"))
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph=GRAPH, precision="fp32")
    weights["to_pixels"].CopyFrom(numpy_helper.from_array(values.astype("f2"), "to_pixels"))
    product = model.graph.node[1]
    product.input[0], product.output[0] = "entries_half", "projected"
    model.graph.node[2].input[0] = "projected_fp32"
    for at, source, result, kind in (
        (1, "entries", "entries_half", TensorProto.FLOAT16),
        (3, "projected", "projected_fp32", TensorProto.FLOAT),
    ):
        cast = helper.make_node("Cast", [source], [result], f"Cast/{result}", to=kind)
        model.graph.node.insert(at, cast)
    reduced = graph_file(bundle, precision="fp16")
    onnx.save(model, reduced)
    bundle.add(reduced, role="onnx", graph=GRAPH, precision="fp16")
    bundle.save()
    return reduced


def test_rounding_to_half_precision_is_within_the_limits(named: Bundle) -> None:
    half(named, 1)
    found = explain(named, GRAPH, "fp16")
    assert found.cause is None and found.islands == ()
    product = next(block for block in found.bisection.blocks if block.block == "layers.0")
    assert 1e-5 < product.error < 1e-3, "really rounded, which a CPU leaves out of its own accord"


def test_overflow_is_named_and_an_island_proposed(named: Bundle) -> None:
    half(named, 2e4)
    found = explain(named, GRAPH, "fp16")
    assert found.block == "layers.0"
    assert found.cause is not None and found.cause.kind == "overflow"
    assert found.islands == ("layers.0",)


def test_an_overflow_between_two_half_operators_of_a_block_is_seen(named: Bundle) -> None:
    """A CPU would carry the large value over in fp32 to the operator that makes it small again."""
    path = half(named, 1)
    model = onnx.load(path)
    at = next(n for n, node in enumerate(model.graph.node) if node.name == "layers.0/MatMul_1")
    model.graph.node[at].output[0] = "plain"
    factors = {"up": np.float16(2**15), "down": np.float16(2**-15)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in factors.items())
    for name, source, result in (("up", "plain", "large"), ("down", "large", "projected")):
        at += 1
        node = helper.make_node("Mul", [source, name], [result], f"layers.0/Mul_{name}")
        model.graph.node.insert(at, node)
    onnx.save(model, path)
    named.add(path, role="onnx", graph=GRAPH, precision="fp16")
    named.save()
    found = explain(named, GRAPH, "fp16")
    assert found.block == "layers.0"
    assert found.cause is not None and found.cause.kind == "overflow"


def test_bf16_is_emulated(named: Bundle) -> None:
    path = half(named, 1)
    model = onnx.load(path)
    model.opset_import[0].version = 23
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    weight = next(w for w in model.graph.initializer if w.name == "to_pixels")
    values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
    weight.CopyFrom(numpy_helper.from_array(values, "to_pixels"))
    reduced = graph_file(named, precision="bf16")
    onnx.save(model, reduced)
    named.add(reduced, role="onnx", graph=GRAPH, precision="bf16")
    named.save()
    found = explain(named, GRAPH, "bf16")
    assert found.cause is None
    product = next(block for block in found.bisection.blocks if block.block == "layers.0")
    assert 1e-4 < product.error < 2e-2, "rounded as bf16 rounds"


def test_casts_of_a_change_of_precision_are_no_fault_of_structure(named: Bundle) -> None:
    """Here the last block is to blame, and holds the casts of a good fp16 graph too."""
    path = half(named, 1)
    model = onnx.load(path)
    clip = next(n for n in model.graph.node if n.op_type == "Clip")
    clip.input[2] = "middle"
    onnx.save(model, path)
    named.add(path, role="onnx", graph=GRAPH, precision="fp16")
    named.save()
    found = explain(named, GRAPH, "fp16")
    assert found.block == OUTSIDE and found.islands == ()
    assert found.cause is not None and found.cause.kind == "constant differs"


def test_every_sampler_is_made_of_plain_graphs_that_explain_knows() -> None:
    samplers = {name for name, spec in SPECS.items() if spec.loop_steps}
    assert set(SHARED) == samplers
    assert all(not SPECS[part].loop_steps for parts in SHARED.values() for part in parts)


def test_relative_error_of_odd_values() -> None:
    one = np.ones(4, np.float32)
    assert relative_error(one, one * np.float32(1.5)) == pytest.approx(0.5)
    assert relative_error(one, one[:2]) == float("inf")
    assert relative_error(one, np.array([1, 1, np.nan, 1], np.float32)) == float("inf")
    holes = np.array([-np.inf, 1, np.nan, 1], np.float32)
    assert relative_error(holes, holes * np.float32(1.5)) == pytest.approx(0.5)
    assert relative_error(holes, np.abs(holes)) == float("inf"), "another infinity"
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == 0.5
    assert relative_error(one * 0, one * 0) == 0


def test_requests_that_cannot_be_met_are_refused(named: Bundle) -> None:
    with pytest.raises(ConfigError, match="against a fresh export") as caught:
        explain(named, GRAPH, "fp32")
    assert "--against RUN" in caught.value.hint
    with pytest.raises(ConfigError, match="not exported in fp16"):
        explain(named, GRAPH, "fp16")
    with pytest.raises(ConfigError, match="no limits for blocks in 'fp7'"):
        explain(named, GRAPH, "fp7")
    with pytest.raises(ConfigError, match="no graph is called nothing"):
        plain_graphs(named, "nothing")
    assert plain_graphs(named, "text_to_image") == ("fusion_step", "codec_decode")
    assert plain_graphs(named, GRAPH) == (GRAPH,)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """codec_decode and fusion_step of a tiny model as the exporter writes them."""
    return export_some(
        tmp_path_factory.mktemp("real") / "bundle", (GRAPH, "fusion_step"), ("fp32", "fp16")
    )


def numeric_faults(real: Bundle, precision: str, graphs: tuple[str, ...]) -> tuple[int, list[str]]:
    """All numeric faults: how many have an effect, and those placed wrongly."""
    missed: list[str] = []
    tried = 0
    for graph in graphs:
        for name in NUMERIC:
            with tempfile.TemporaryDirectory() as folder:
                copy = copy_graph(real, graph, precision, Path(folder) / "copy")
                try:
                    done = inject(copy, find_fault(name), graph, precision)
                except ConfigError:
                    continue
                if precision != "fp32" and run_parity(copy, precisions=(precision,)).ok:
                    continue  # within rounding
                tried += 1
                good, suspect = graph_file(real, graph), graph_file(copy, graph, precision)
                found = bisect(good, suspect, cases(real, graph), precision)
                if found.first is None or found.first.block != done.block:
                    missed.append(f"{graph} {name}: {found.first}, not {done.block}")
                    continue
                cause = find_cause(found, good, suspect, precision)
                assert cause.kind not in ("rounding", "cancellation"), (graph, name, cause)
    return tried, missed


@pytest.mark.slow
def test_nine_of_ten_numeric_faults_are_placed_in_the_right_block(real: Bundle) -> None:
    tried, missed = numeric_faults(real, "fp32", (GRAPH, "fusion_step"))
    assert tried >= 40
    assert len(missed) <= tried / 10, missed


@pytest.mark.slow
def test_nine_of_ten_noticed_faults_of_half_graphs_are_placed_right(real: Bundle) -> None:
    tried, missed = numeric_faults(real, "fp16", (GRAPH,))
    assert tried >= 12
    assert len(missed) <= tried / 10, missed
