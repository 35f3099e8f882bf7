"""The caster: what becomes half, what stays, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mmprod.errors import ConfigError, NumericsError, PrecisionMismatch
from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.precision import cast_model, is_kept
from mmprod.export.value_types import value_types
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.runners.ort import OrtRunner
from tests.export.small_onnx import graph, matrix, node

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
BATCH = Dim("batch", 1, 2, 4)
SPEC = GraphSpec(
    "small",
    (Tensor("x", "float32", (BATCH, 8), "noise"),),
    (Tensor("y", "float32", (BATCH, 8), "logits"),),
    "",
)


def block(scope: str = "") -> onnx.ModelProto:
    """A product, a gate, a product, an RMS norm, a product, a softmax, a product."""
    nodes = [
        node("MatMul", "x w1", "a", scope),
        node("Add", "a bias", "b"),
        node("Sigmoid", "b", "gate"),
        node("Mul", "b gate", "d"),
        node("MatMul", "d w2", "e"),
        node("Pow", "e two", "square"),
        node("ReduceMean", "square axis", "mean"),
        node("Add", "mean eps", "safe"),
        node("Sqrt", "safe", "root"),
        node("Reciprocal", "root", "inverse"),
        node("Mul", "e inverse", "normed"),
        node("MatMul", "normed w1", "scores"),
        node("Softmax", "scores", "shares"),
        node("MatMul", "shares w2", "y"),
    ]
    weights = {
        "w1": matrix(1),
        "w2": matrix(2),
        "bias": np.ones(8, np.float32),
        "two": np.float32(2),
        "axis": np.array([-1]),
        "eps": np.float32(1e-6),
    }
    return graph(nodes, weights)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The type that each node of the block computes in."""
    types = value_types(model.graph)
    return {
        n.name.rpartition("/")[2]: types[n.output[0]]
        for n in model.graph.node
        if n.op_type != "Cast"
    }


def casts(model: onnx.ModelProto) -> list[str]:
    return [n.name for n in model.graph.node if n.op_type == "Cast"]


def run(model: onnx.ModelProto, x: Array, folder: Path) -> Array:
    path = folder / "g.onnx"
    path.write_bytes(model.SerializeToString())
    return OrtRunner(SPEC, path, threads=1)({"x": x})["y"]


def test_products_and_gates_are_half_norms_and_softmax_are_not() -> None:
    cast = cast_model(block(), "fp16")
    half = {"a", "b", "gate", "d", "e", "scores", "y"}
    assert {name for name, kind in kinds(cast).items() if kind == HALF} == half
    assert {kind for name, kind in kinds(cast).items() if name not in half} == {FLOAT}
    onnx.checker.check_model(cast, full_check=True)
    assert_precision(cast, "fp16")
    assert precision_of(cast) == {"fp16": 4}


def test_casts_stand_at_borders_only_and_once_per_value() -> None:
    cast = cast_model(block(), "fp16")
    # x, e (read by Pow and by Mul), normed, scores, shares, y
    assert casts(cast) == [
        f"Cast/{n}" for n in ("x_half", "e_fp32", "normed_half", "scores_fp32", "shares_half", "y")
    ]


def test_inputs_and_outputs_keep_name_and_type() -> None:
    cast = cast_model(block(), "fp16")
    assert list(cast.graph.input) == list(block().graph.input)
    assert list(cast.graph.output) == list(block().graph.output)


def test_weights_are_converted_once_and_originals_dropped() -> None:
    cast = cast_model(block(), "fp16")
    found = {
        t.name: t.data_type for t in cast.graph.initializer if t.data_type != TensorProto.INT64
    }
    assert found == {
        "w1_half": HALF,
        "w2_half": HALF,
        "bias_half": HALF,
        "two": FLOAT,
        "eps": FLOAT,
    }


def test_half_graphs_run_and_are_close(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    exact, half = run(block(), x, tmp_path), run(cast_model(block(), "fp16"), x, tmp_path)
    np.testing.assert_allclose(exact, half, atol=2e-3)
    assert (exact != half).any()


def test_fp32_gives_an_equal_copy() -> None:
    model = block()
    copy = cast_model(model, "fp32")
    assert copy is not model
    assert copy == model


def test_the_model_that_is_cast_stays_as_it_is() -> None:
    model = block()
    cast_model(model, "fp16")
    assert model == block()


def test_bf16_is_valid_onnx_of_a_newer_opset() -> None:
    cast = cast_model(block(), "bf16")
    onnx.checker.check_model(cast, full_check=True)
    assert cast.opset_import[0].version == 23
    assert precision_of(cast) == {"bf16": 4}
    assert_precision(cast, "bf16")
    with pytest.raises(PrecisionMismatch):
        assert_precision(cast, "fp16")


@pytest.mark.parametrize("scope", ["codec.quantizer", "sampling", "a.sampling.draw", "quantizer"])
def test_kept_scopes_stay_fp32(scope: str) -> None:
    cast = cast_model(block(scope), "fp16")
    assert kinds(cast)["a"] == FLOAT
    assert precision_of(cast) == {"fp16": 3, "fp32": 1}
    assert_precision(cast, "fp16")


def test_scopes_are_compared_by_whole_names() -> None:
    assert is_kept("codec.quantizer/MatMul_3")
    assert is_kept("loop/sampling/Exp_1")
    assert not is_kept("decoder.upsampling.conv/Conv_1")
    assert not is_kept("prequantizer/Conv_1")
    assert not is_kept("")


def test_a_chain_that_only_feeds_fp32_goes_back_to_fp32() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Reshape", "a shape", "b"),
        node("Mul", "b scale", "c"),
        node("Softmax", "c", "y"),
    ]
    weights = {"w": matrix(1), "shape": np.array([-1, 8]), "scale": np.float32(3)}
    cast = cast_model(graph(nodes, weights), "fp16")
    assert kinds(cast) == {"a": HALF, "b": FLOAT, "c": FLOAT, "y": FLOAT}
    assert casts(cast) == ["Cast/x_half", "Cast/a_fp32"]


def test_numbers_that_half_cannot_hold_keep_their_operator_in_fp32() -> None:
    def chain(number: float) -> onnx.ModelProto:
        nodes = [
            node("MatMul", "x w", "a"),
            node("Add", "a number", "b"),
            node("MatMul", "b w", "y"),
        ]
        return graph(nodes, {"w": matrix(1), "number": np.float32(number)})

    assert kinds(cast_model(chain(0.5), "fp16"))["b"] == HALF
    assert kinds(cast_model(chain(0.0), "fp16"))["b"] == HALF
    for number in (1e-6, 1e6, -1e6):
        assert kinds(cast_model(chain(number), "fp16"))["b"] == FLOAT


def test_a_value_read_in_both_types_exists_in_both() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Softmax", "a", "s"),
        node("MatMul", "a w", "m"),
        node("Mul", "s m", "y"),
    ]
    cast = cast_model(graph(nodes, {"w": matrix(1)}), "fp16")
    onnx.checker.check_model(cast, full_check=True)
    assert kinds(cast) == {"a": HALF, "s": FLOAT, "m": HALF, "y": FLOAT}


def test_scales_of_resize_stay_fp32() -> None:
    image = {"x": (FLOAT, ["batch", 2, 4, 4])}
    nodes = [
        node("Conv", "x k", "a", pads=[1, 1, 1, 1]),
        node("Resize", "a  scales", "b", mode="nearest"),
        node("Conv", "b k", "y", pads=[1, 1, 1, 1]),
    ]
    nodes[1].input[:] = ["a", "", "scales"]
    kernel = np.ones((2, 2, 3, 3), np.float32)
    weights = {"k": kernel, "scales": np.array([1, 1, 2, 2], np.float32)}
    cast = cast_model(graph(nodes, weights, image, {"y": (FLOAT, ["batch", 2, 8, 8])}), "fp16")
    onnx.checker.check_model(cast, full_check=True)
    assert kinds(cast) == {"a": HALF, "b": HALF, "y": HALF}


@pytest.mark.parametrize("value", [70000.0, -70000.0, np.inf, np.nan])
def test_a_weight_beyond_half_is_named(value: float) -> None:
    bad = matrix(1)
    bad[2, 3] = value
    model = graph([node("MatMul", "x tower.0.up.weight", "y")], {"tower.0.up.weight": bad})
    with pytest.raises(NumericsError, match=r"tower\.0\.up\.weight") as caught:
        cast_model(model, "fp16")
    assert caught.value.exit_code == 7
    if np.isfinite(value):
        cast_model(model, "bf16")


@pytest.mark.parametrize(("name", "near"), [("fp61", "fp16"), ("f32", "fp32"), ("BF16", "bf16")])
def test_an_unknown_precision_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        cast_model(block(), name)
    assert near in caught.value.hint


def test_another_precision_than_asked_is_refused() -> None:
    with pytest.raises(PrecisionMismatch, match="asked for fp16") as caught:
        assert_precision(block(), "fp16")
    assert caught.value.exit_code == 5
    with pytest.raises(PrecisionMismatch):
        assert_precision(cast_model(block(), "fp16"), "fp32")


def test_a_single_product_left_in_fp32_is_found() -> None:
    cast = cast_model(block(), "fp16")
    first = next(n for n in cast.graph.node if n.op_type == "MatMul")
    first.input[:] = ["x", "w1"]
    cast.graph.initializer.append(numpy_helper.from_array(matrix(1), "w1"))
    with pytest.raises(PrecisionMismatch, match="/a of small computes in fp32"):
        assert_precision(cast, "fp16")
