"""Linking prologue, body and epilogue into one graph with one Loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.islands import split_loop
from mmprod.export.loop import LoopParts, compose_loop
from mmprod.export.precision import cast_model
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.runners.ort import OrtRunner
from tests.export.small_onnx import ROW, graph, matrix, node

BATCH = Dim("batch", 1, 2, 4)
FLOATS = {"x": ROW, "noise": ROW}
TABLE = np.arange(5 * 8, dtype=np.float32).reshape(5, 8) / 10


def spec(steps: int) -> GraphSpec:
    def tensor(name: str) -> Tensor:
        return Tensor(name, "float32", (BATCH, 8), "noise")

    return GraphSpec(
        "small", (tensor("x"), tensor("noise")), (tensor("state"), tensor("y")), "", steps
    )


def parts(steps: int) -> LoopParts:
    """constant = x W; state = noise; T times: state = tanh(state W + constant + table[step]);
    outputs: state, state V. Names clash between parts on purpose, with equal and other content."""
    prologue = graph(
        [node("MatMul", "x weight", "c"), node("Identity", "noise", "noise_out")],
        {"weight": matrix(1)},
        FLOATS,
        {"c": ROW, "noise_out": ROW},
    )
    body = graph(
        [
            node("MatMul", "state weight", "c"),
            node("Add", "c constant", "sum"),
            node("Gather", "table step", "row"),
            node("Add", "sum row", "shifted"),
            node("Tanh", "shifted", "state_out"),
        ],
        {"weight": matrix(1), "table": TABLE},
        {"step": (TensorProto.INT64, [1]), "constant": ROW, "state": ROW},
        {"state_out": ROW},
    )
    epilogue = graph(
        [node("Identity", "state", "state_out"), node("MatMul", "state weight", "c")],
        {"weight": matrix(2)},
        {"constant": ROW, "state": ROW},
        {"state_out": ROW, "c": ROW},
    )
    return LoopParts(prologue, body, epilogue, ("constant",), ("state",), steps)


def with_fixed_part(*, quantized: bool = False) -> LoopParts:
    """The body adds constant * constant W, too, with a Q/DQ pair between the two if `quantized`."""
    made = parts(4)
    fixed = [
        node("MatMul", "constant weight", "product"),
        node("Mul", "constant product", "fixed"),
        node("Add", "sum fixed", "more"),
    ]
    if quantized:
        fixed[1:2] = [
            node("QuantizeLinear", "product scale", "small"),
            node("DequantizeLinear", "small scale", "large"),
            node("Mul", "constant large", "fixed"),
        ]
    body = onnx.ModelProto.FromString(made.body.SerializeToString())
    nodes = list(body.graph.node)
    nodes[3].input[0] = "more"
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del body.graph.node[:]
    body.graph.node.extend([*rest[:2], *fixed, *rest[2:]])
    if quantized:
        body.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(0.01, np.float32), "scale")
        )
    return replace(made, body=body)


def inside(model: onnx.ModelProto) -> list[str]:
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    return [n.op_type for n in loop.attribute[0].g.node]


def linked(steps: int, precision: str = "fp32") -> onnx.ModelProto:
    made = parts(steps)
    cast = {k: cast_model(getattr(made, k), precision) for k in ("prologue", "body", "epilogue")}
    return compose_loop(replace(made, **cast), "small", ["state", "y"])


def by_hand(steps: int, x: Array, noise: Array) -> tuple[Array, Array]:
    state, constant = noise, x @ matrix(1)
    for step in range(steps):
        state = np.tanh(state @ matrix(1) + constant + TABLE[step])
    return state, state @ matrix(2)


def run(model: onnx.ModelProto, steps: int, batch: int, folder: Path) -> tuple[list[Array], ...]:
    path = folder / "loop.onnx"
    path.write_bytes(model.SerializeToString())
    rng = np.random.default_rng(batch)
    inputs = {name: rng.random((batch, 8), dtype=np.float32) for name in ("x", "noise")}
    found = OrtRunner(spec(steps), path, threads=1)(inputs)
    return [found["state"], found["y"]], list(by_hand(steps, inputs["x"], inputs["noise"]))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_loop_computes_what_its_parts_do(steps: int, batch: int, tmp_path: Path) -> None:
    model = linked(steps)
    onnx.checker.check_model(model, full_check=True)
    for found, expected in zip(*run(model, steps, batch, tmp_path), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_loop_body_is_cast_too(tmp_path: Path) -> None:
    model = linked(4, "fp16")
    onnx.checker.check_model(model, full_check=True)
    assert precision_of(model) == {"fp16": 3}
    assert_precision(model, "fp16")
    for found, expected in zip(*run(model, 4, 2, tmp_path), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)
        assert (found != expected).any()


def test_what_no_step_changes_is_computed_once(tmp_path: Path) -> None:
    model = compose_loop(with_fixed_part(), "small", ["state", "y"])
    onnx.checker.check_model(model, full_check=True)
    nodes = ["MatMul", "Add", "Add", "Gather", "Add", "Tanh"]
    assert inside(model) == ["Unsqueeze", *nodes, "Identity"]
    (found, _), _ = run(model, 4, 3, tmp_path)
    rng = np.random.default_rng(3)
    x, state = (rng.random((3, 8), dtype=np.float32) for _ in range(2))
    constant = x @ matrix(1)
    for step in range(4):
        fixed = constant * (constant @ matrix(1))
        state = np.tanh(state @ matrix(1) + constant + fixed + TABLE[step])
    np.testing.assert_allclose(found, state, atol=1e-6)


def test_it_can_be_taken_apart_and_linked_again(tmp_path: Path) -> None:
    model = compose_loop(with_fixed_part(), "small", ["state", "y"])
    again = compose_loop(split_loop(model), "small", ["state", "y"])
    onnx.checker.check_model(again, full_check=True)
    assert inside(again) == inside(model)
    (first, _), (second, _) = run(model, 4, 3, tmp_path), run(again, 4, 3, tmp_path)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_quantized_stays_with_its_product() -> None:
    model = compose_loop(with_fixed_part(quantized=True), "small", ["state", "y"])
    onnx.checker.check_model(model, full_check=True)
    assert inside(model).count("MatMul") == 1  # the product itself is fixed
    assert {"QuantizeLinear", "DequantizeLinear", "Mul"} <= set(inside(model))


def test_a_state_that_never_changes_is_still_made_in_the_loop() -> None:
    made = parts(2)
    body = graph(
        [node("MatMul", "constant weight", "state_out")],
        {"weight": matrix(1)},
        {"step": (TensorProto.INT64, [1]), "constant": ROW, "state": ROW},
        {"state_out": ROW},
    )
    model = compose_loop(replace(made, body=body), "small", ["state", "y"])
    onnx.checker.check_model(model, full_check=True)
    assert "MatMul" in inside(model)


def test_interface_trip_count_and_condition() -> None:
    model = linked(5)
    assert [v.name for v in model.graph.input] == ["x", "noise"]
    assert [v.name for v in model.graph.output] == ["state", "y"]
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert int(constants[loop.input[0]]) == 5
    assert bool(constants[loop.input[1]]) is True
    assert len(loop.attribute[0].g.initializer) == 0


def test_equal_weights_are_stored_once_and_others_apart() -> None:
    model = linked(3)
    matrices = [
        onnx.numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [8, 8]
    ]
    assert len(matrices) == 2
    assert any(np.array_equal(m, matrix(1)) for m in matrices)
    assert any(np.array_equal(m, matrix(2)) for m in matrices)


@pytest.mark.parametrize("linked_parts", [parts(3), with_fixed_part()])
def test_names_are_distinct_over_all_parts(linked_parts: LoopParts) -> None:
    model = compose_loop(linked_parts, "small", ["state", "y"])
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    nodes = [*model.graph.node, *loop.attribute[0].g.node]
    made = [name for n in nodes for name in n.output]
    weights = [t.name for t in model.graph.initializer]
    names = [*made, *weights, *(v.name for v in model.graph.input)]
    assert len(names) == len(set(names))
    assert len({n.name for n in nodes}) == len(nodes)


def test_tensorrt_reads_it(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(linked(4, precision).SerializeToString())
        logger = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path)), [
            parser.get_error(i).desc() for i in range(parser.num_errors)
        ]
        assert network.num_outputs == 2
