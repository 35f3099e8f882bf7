"""The quantizer and its calibration, on graphs small enough to reckon by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from torch import nn

from mmprod.errors import NumericsError, PrecisionMismatch
from mmprod.export.calibrate import calibrate
from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.pipeline import CALIBRATION
from mmprod.export.precision import cast_model
from mmprod.export.quantize import channel_scales, quantizable, quantize_model, quantized
from mmprod.export.reference import reference_inputs
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.runners.ort import OrtRunner
from tests.export.small_onnx import graph, matrix, node
from tests.export.test_precision import SPEC, block

BATCH = Dim("batch", 1, 4, 16)
RANGES = {"x": 4.0, "d": 4.0, "normed": 3.0, "shares": 1.0}
QUANTIZED = pytest.mark.parametrize("precision", ["int8", "fp8"])


def run(model: onnx.ModelProto, x: Array, folder: Path, precision: str) -> Array:
    path = folder / f"{precision}.onnx"
    path.write_bytes(model.SerializeToString())
    return OrtRunner(SPEC, path, threads=1, precision=precision)({"x": x})["y"]


@QUANTIZED
def test_products_with_stored_weights_are_quantized(precision: str) -> None:
    made = quantize_model(block(), precision, RANGES)
    onnx.checker.check_model(made, full_check=True)
    assert precision_of(made) == {precision: 4}
    assert_precision(made, precision)
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    stored = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
    assert kinds[f"w1_axis1_{precision}"] == stored
    assert "w1" not in kinds
    assert kinds["bias"] == TensorProto.FLOAT
    # w1 and w2 are each read twice and stored once
    assert [n.op_type for n in made.graph.node].count("DequantizeLinear") == 4 + 2


@QUANTIZED
def test_quantized_graphs_run_and_are_close(precision: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    exact = run(block(), x, tmp_path, "fp32")
    found = run(quantize_model(block(), precision, RANGES), x, tmp_path, precision)
    assert (exact != found).any()
    bound = {"int8": 0.1, "fp8": 0.2}[precision]
    assert np.abs(exact - found).max() < bound * np.abs(exact).max()


def test_the_numbers_are_those_of_the_definition(tmp_path: Path) -> None:
    weight = matrix(1)
    model = graph([node("MatMul", "x w", "y")], {"w": weight})
    x = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)
    found = run(quantize_model(model, "int8", {"x": 2.0}), x, tmp_path, "int8")
    step = np.float32(2.0 / 127)
    scales = np.abs(weight).max(0) / 127
    kept = np.clip(np.rint(x / step), -128, 127) * step
    np.testing.assert_allclose(found, kept @ (np.rint(weight / scales) * scales), atol=1e-5)


def test_kept_scopes_and_products_of_two_values_stay_fp32() -> None:
    nodes = [node("MatMul", "x w", "a", "quantizer"), node("MatMul", "a a", "y")]
    model = graph(nodes, {"w": matrix(1)})
    assert quantizable(model.graph) == []
    made = quantize_model(model, "int8", {})
    assert precision_of(made) == {"fp32": 2}
    assert_precision(made, "int8")


def test_what_is_made_of_weights_alone_is_a_weight(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "w1", "turned"),
        node("MatMul", "w1 w2", "table"),
        node("Slice", "table zero eight axis", "most"),
        node("MatMul", "x turned", "a"),
        node("MatMul", "a most", "b"),
        node("Gather", "table row", "first"),
        node("Add", "b first", "y"),
    ]
    weights = {"w1": matrix(1), "w2": matrix(2)}
    numbers = {"zero": [0], "eight": [8], "axis": [1], "row": 0}
    model = graph(nodes, weights | {name: np.array(n) for name, n in numbers.items()})
    made = quantize_model(model, "int8", {"x": 4.0, "a": 4.0})
    onnx.checker.check_model(made, full_check=True)
    assert precision_of(made) == {"fp32": 1, "int8": 2}  # the table is read elsewhere too
    assert_precision(made, "int8")
    names = {tensor.name for tensor in made.graph.initializer}
    assert {"turned_axis1_int8", "most_axis1_int8", "w1", "w2"} <= names
    assert "Transpose" not in [n.op_type for n in made.graph.node]
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    exact, found = run(model, x, tmp_path, "fp32"), run(made, x, tmp_path, "int8")
    assert 0 < np.abs(exact - found).max() < 0.1 * np.abs(exact).max()


def test_a_product_with_a_turned_weight_left_in_fp32_is_found() -> None:
    made = quantize_model(graph([node("MatMul", "x w1", "y")], {"w1": matrix(1)}), "int8", RANGES)
    made.graph.initializer.append(numpy_helper.from_array(matrix(2), "w2"))
    made.graph.node.extend([node("Transpose", "w2", "turned"), node("MatMul", "x turned", "z")])
    with pytest.raises(PrecisionMismatch, match="/z of small computes in fp32"):
        assert_precision(made, "int8")


def test_a_product_left_in_fp32_is_found() -> None:
    made = quantize_model(block(), "int8", RANGES)
    first = next(n for n in made.graph.node if n.op_type == "MatMul")
    first.input[:] = ["x", "w1"]
    made.graph.initializer.append(numpy_helper.from_array(matrix(1), "w1"))
    with pytest.raises(PrecisionMismatch, match="/a of small computes in fp32"):
        assert_precision(made, "int8")


@pytest.mark.parametrize(("made", "asked"), [("int8", "fp8"), ("fp8", "int8"), ("int8", "fp32")])
def test_a_graph_is_not_taken_for_another_precision(made: str, asked: str) -> None:
    with pytest.raises(PrecisionMismatch):
        assert_precision(quantize_model(block(), made, RANGES), asked)


def test_quantized_precisions_need_ranges() -> None:
    with pytest.raises(ValueError, match="ranges"):
        cast_model(block(), "int8")


@QUANTIZED
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(precision: str, bad: float) -> None:
    weight = matrix(1)
    weight[2, 3] = bad
    model = graph([node("MatMul", "x up.weight", "y")], {"up.weight": weight})
    with pytest.raises(NumericsError, match=r"up\.weight"):
        quantize_model(model, precision, {"x": 1.0})
    with pytest.raises(NumericsError, match="x reached"):
        quantize_model(block(), precision, RANGES | {"x": bad})


def test_channels_of_zeros_stay_zeros() -> None:
    weight = matrix(1)
    weight[:, 2] = 0
    scales = channel_scales(weight, 1, "int8", "w")
    stored = quantized(weight, scales, 1, "int8")
    assert (scales > 0).all()
    assert (stored[:, 2] == 0).all()
    assert np.abs(np.delete(stored, 2, 1)).max(0).tolist() == [127] * 7


def test_ranges_are_the_largest_numbers_of_all_samples() -> None:
    x = np.ones((2, 8), np.float32)
    x[1, 3] = -7
    found = calibrate(SPEC, nn.Identity(), {"small": block()}, [{"x": x}, {"x": x / 2}])
    assert set(found) == {"small"}
    assert found["small"].ranges["x"] == 7
    assert set(found["small"].ranges) == {"x", "d", "normed", "shares"}
    assert 0 < found["small"].ranges["shares"] <= 1


def test_a_nan_anywhere_is_seen_and_stays_seen() -> None:
    x = np.ones((2, 8), np.float32)
    bad = x.copy()
    bad[1, 3] = np.nan
    found = calibrate(SPEC, nn.Identity(), {"small": block()}, [{"x": x}, {"x": bad}, {"x": x}])
    assert np.isnan(found["small"].ranges["x"])
    with pytest.raises(NumericsError, match="x reached"):
        quantize_model(block(), "int8", found["small"].ranges)


def test_ranges_come_from_samples_that_are_no_references() -> None:
    spec = GraphSpec("g", (Tensor("t", "int32", (BATCH, 2), "tokens", below=99),), (), "")
    tokens = np.arange(20, dtype=np.int32)[:, None].repeat(2, 1)

    def taken(batch: int) -> list[int]:
        inputs = reference_inputs(spec, batch, {"tokens": tokens}, {"tokens": 99})
        return [int(row[0]) for row in inputs["t"]]

    assert taken(1) + taken(3) == [0, 1, 2, 3]
    assert taken(CALIBRATION) == list(range(4, 20))
