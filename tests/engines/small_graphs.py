"""Small ONNX graphs for builds that take a tenth of a second, each with its specification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from mmprod.engines.job import BuildJob
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.manifest import sha256_file

BATCH = Dim("batch", 1, 4, 16)
REDUCED = {"fp16": T.FLOAT16, "bf16": T.BFLOAT16}
QUANTIZED = {"mixed": T.INT8, "int8": T.INT8, "fp8": T.FLOAT8E4M3FN}


def spec(name: str, source: Tensor, target: Tensor) -> GraphSpec:
    return GraphSpec(name, (source,), (target,), "a graph of the tests")


def rows(name: str, width: int, dtype: str = "float32") -> Tensor:
    return Tensor(name, dtype, (BATCH, width), "logits")  # type: ignore[arg-type]


def job(
    graph: GraphSpec, path: Path, precision: str, target: str, plan: str = "out.plan"
) -> BuildJob:
    where = path.parent / plan
    return BuildJob.of(
        graph,
        onnx=path,
        plan=where,
        precision=precision,
        target=("rtx", target),
        files=[(path.name, sha256_file(path))],
    )


def matmul(path: Path, precision: str = "fp32") -> GraphSpec:
    """x -> MatMul -> Relu -> MatMul -> y, in fp32, fp16 or bf16 between casts."""
    kind = REDUCED.get(precision, T.FLOAT)
    nodes = [
        helper.make_node("Cast", ["x"], ["xc"], name="in", to=kind),
        helper.make_node("MatMul", ["xc", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["yc"], name="second"),
        helper.make_node("Cast", ["yc"], ["y"], name="out", to=T.FLOAT),
    ]
    weights = [_weight("w1", (16, 64), kind), _weight("w2", (64, 8), kind)]
    _save(path, nodes, ("x", T.FLOAT, 16), ("y", T.FLOAT, 8), weights)
    return spec("matmul", rows("x", 16), rows("y", 8))


def folded(path: Path) -> GraphSpec:
    """x -> MatMul with the product of two constants -> y."""
    nodes = [
        helper.make_node("MatMul", ["w1", "w2"], ["w"], name="constant_product"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    weights = [_weight("w1", (16, 64), T.FLOAT), _weight("w2", (64, 8), T.FLOAT)]
    _save(path, nodes, ("x", T.FLOAT, 16), ("y", T.FLOAT, 8), weights)
    return spec("folded", rows("x", 16), rows("y", 8))


def quantized(path: Path, precision: str) -> GraphSpec:
    """x -> Q -> DQ -> MatMul with Q/DQ weights -> y; mixed: in fp16 between casts."""
    kind, results = QUANTIZED[precision], T.FLOAT16 if precision == "mixed" else T.FLOAT
    pair = ("QuantizeLinear", "DequantizeLinear")
    nodes = [
        helper.make_node("Cast", ["x"], ["xc"], name="in", to=results),
        helper.make_node(pair[0], ["xc", "s", "z"], ["xq"]),
        helper.make_node(pair[1], ["xq", "s", "z"], ["xd"]),
        helper.make_node(pair[0], ["w", "s", "z"], ["wq"]),
        helper.make_node(pair[1], ["wq", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["yc"], name="product"),
        helper.make_node("Cast", ["yc"], ["y"], name="out", to=T.FLOAT),
    ]
    scale = numpy_helper.from_array(np.asarray(0.05, helper.tensor_dtype_to_np_dtype(results)), "s")
    weights = [_weight("w", (16, 64), results), scale, helper.make_tensor("z", kind, [], [0])]
    _save(path, nodes, ("x", T.FLOAT, 16), ("y", T.FLOAT, 64), weights)
    return spec("quantized", rows("x", 16), rows("y", 64))


def conv(path: Path, precision: str = "fp32") -> GraphSpec:
    """uint8 pixels -> Transpose -> Conv -> Sigmoid -> features."""
    kind = REDUCED.get(precision, T.FLOAT)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], name="in", to=kind),
        helper.make_node("Transpose", ["f"], ["t"], name="nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"], name="filter", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Sigmoid", ["c"], ["s"], name="squash"),
        helper.make_node("Cast", ["s"], ["y"], name="out", to=T.FLOAT),
    ]
    weights = [_weight("w", (8, 3, 3, 3), kind)]
    _save(path, nodes, ("pixels", T.UINT8, 16, 16, 3), ("y", T.FLOAT, 8, 8, 8), weights)
    pixels = Tensor("pixels", "uint8", (BATCH, 16, 16, 3), "pixels", below=256)
    return spec("conv", pixels, Tensor("y", "float32", (BATCH, 8, 8, 8), "logits"))


def loop(path: Path, precision: str = "fp32") -> GraphSpec:
    """Four times: state = tanh(state @ w), with w from outside the loop's body, in fp32 or fp16."""
    kind = REDUCED.get(precision, T.FLOAT)
    state = ["batch", 16]
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["s"], ["c"], name="body_in", to=kind),
            helper.make_node("MatMul", ["c", "w"], ["p"], name="body_product"),
            helper.make_node("Cast", ["p"], ["m"], name="body_out", to=T.FLOAT),
            helper.make_node("Tanh", ["m"], ["s_next"], name="body_tanh"),
            helper.make_node("Identity", ["go"], ["go_next"], name="body_go"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", T.INT64, []),
            helper.make_tensor_value_info("go", T.BOOL, []),
            helper.make_tensor_value_info("s", T.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("go_next", T.BOOL, []),
            helper.make_tensor_value_info("s_next", T.FLOAT, state),
        ],
    )
    node = helper.make_node("Loop", ["trips", "true", "x"], ["y"], name="loop", body=body)
    fixed = {"trips": np.array(4, np.int64), "true": np.array(True)}
    weights = [numpy_helper.from_array(value, name) for name, value in fixed.items()]
    weights.append(_weight("w", (16, 16), kind))
    _save(path, [node], ("x", T.FLOAT, 16), ("y", T.FLOAT, 16), weights)
    return spec("loop", rows("x", 16), rows("y", 16))


def multinomial(path: Path) -> GraphSpec:
    """An operator that TensorRT does not have."""
    node = helper.make_node("Multinomial", ["x"], ["y"], name="draw_tokens", dtype=T.INT32)
    _save(path, [node], ("x", T.FLOAT, 16), ("y", T.INT32, 1), [])
    return spec("multinomial", rows("x", 16), rows("y", 1, "int32"))


def chain(path: Path, layers: int = 300) -> GraphSpec:
    """Many different layers in a row: takes the builder a while."""
    nodes, weights = [], []
    for k in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"m{k}"], name=f"product{k}"))
        nodes.append(helper.make_node("Softmax", [f"m{k}"], [f"x{k + 1}"], name=f"softmax{k}"))
        weights.append(_weight(f"w{k}", (16 + k, 17 + k), T.FLOAT))
    width = 16 + layers
    _save(path, nodes, ("x0", T.FLOAT, 16), (f"x{layers}", T.FLOAT, width), weights)
    return spec("chain", rows("x0", 16), rows(f"x{layers}", width))


def embed(
    path: Path, tensors: tuple[Tensor, Tensor], precision: str = "fp32", seed: int = 0
) -> None:
    """int32 ids -> MatMul -> float32 rows, in the shapes of an `embed_*` graph of the catalog."""
    source, target = tensors
    kind = REDUCED.get(precision, T.FLOAT)
    nodes = [
        helper.make_node("Cast", [source.name], ["f"], name="in", to=kind),
        helper.make_node("MatMul", ["f", "w"], ["e"], name="product"),
        helper.make_node("Cast", ["e"], [target.name], name="out", to=T.FLOAT),
    ]
    widths = (source.sizes_at("min")[1], target.sizes_at("min")[1])
    weights = [_weight("w", widths, kind, seed)]
    ports = ((source.name, T.INT32, widths[0]), (target.name, T.FLOAT, widths[1]))
    _save(path, nodes, *ports, weights)


def _weight(name: str, shape: tuple[int, ...], kind: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return helper.make_tensor(name, kind, shape, values.ravel())


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    source: tuple[str, int, *tuple[int, ...]],
    target: tuple[str, int, *tuple[int, ...]],
    weights: Sequence[onnx.TensorProto],
) -> None:
    ports = [
        helper.make_tensor_value_info(name, kind, ["batch", *sizes])
        for name, kind, *sizes in (source, target)
    ]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], weights)
    opset = [helper.make_opsetid("", 22)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
