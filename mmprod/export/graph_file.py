"""A finished graph: which operators it may hold, what it says of itself, how it is saved."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx
from onnx import TensorProto

import mmprod
from mmprod.errors import ConfigError
from mmprod.export.precision import CALIBRATED
from mmprod.export.value_types import walk
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.manifest import atomic_path

INLINE_LIMIT = 1_500_000_000
"""bytes of weights up to which they lie inside the .onnx file; protobuf ends at 2 GB"""
PREFIX = "mmprod."

ALLOWED = frozenset(
    {"Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "Clip", "Concat", "Conv", "Cos", "CumSum"}
    | {"DepthToSpace", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather"}
    | {"GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity"}
    | {"InstanceNormalization", "LayerNormalization", "Less", "LessOrEqual", "Log", "MatMul", "Max"}
    | {"Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Reciprocal", "ReduceL2", "ReduceMax"}
    | {"ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape"}
    | {"Sigmoid", "Sin", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub"}
    | {"Tanh", "Tile", "Transpose", "Unsqueeze", "Where"}
)
"""Operators that give the same result in PyTorch, ONNX Runtime and TensorRT. Left out on purpose:
TopK and sorting break ties differently, Multinomial and Random* draw differently, NonZero and If
make shapes depend on data, Scatter* may write in any order."""
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""allowed in int8, fp8 and mixed graphs: rounding to a grid, alike everywhere"""
_TYPES: dict[int, str] = {
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.FLOAT: "float32",
}


def finish_graph(model: onnx.ModelProto, spec: GraphSpec, precision: str) -> None:
    """Check operators and interface, take the exporter's notes away, add our own. In place.

    Raises ConfigError for an operator outside `ALLOWED`.
    """
    check_operators(model, spec, ALLOWED | QUANTIZING if precision in CALIBRATED else ALLOWED)
    check_interface(model, spec)
    for node, _ in walk(model.graph):
        del node.metadata_props[:]
        node.ClearField("doc_string")
    notes = {
        "graph": spec.name,
        "precision": precision,
        "loop_steps": str(spec.loop_steps),
        "version": mmprod.__version__,
        "torch": version("torch"),
        "onnxscript": version("onnxscript"),
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in notes.items()})
    model.graph.name = spec.name


def check_operators(
    model: onnx.ModelProto, spec: GraphSpec, allowed: frozenset[str] = ALLOWED
) -> None:
    """Only `allowed` operators, one Loop of our own where the graph has loop steps, and uint8 only
    between a cast and the graph's inputs and outputs (TensorRT knows it nowhere else)."""
    loops = 1 if spec.loop_steps else 0
    hint = "write the model with another operation; see ALLOWED in export/graph_file.py"
    for node, types in walk(model.graph):
        ours = node.op_type == "Loop" and loops
        loops -= 1 if ours else 0
        if node.domain or not (ours or node.op_type in allowed):
            raise ConfigError(
                f"{spec.name}: {node.name} is the operator {node.op_type}, which not every backend "
                "computes alike",
                hint=hint,
            )
        touched = {types.get(name) for name in (*node.input, *node.output)}
        if TensorProto.UINT8 in touched and node.op_type not in ("Cast", "Shape"):
            raise ConfigError(
                f"{spec.name}: {node.name} computes with uint8, which TensorRT cannot",
                hint="cast pixels to float32 first, and to uint8 last",
            )


def check_interface(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Names, types and shapes of inputs and outputs are those of the spec, dynamic names included.

    A difference is a bug of exporter or graph module: RuntimeError.
    """
    for wanted, found in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        asked, has = [_declared(t) for t in wanted], [_described(v) for v in found]
        if asked != has:
            raise RuntimeError(f"{spec.name} was exported as {has}, its specification says {asked}")


def save_graph(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write the graph, and its weights beside it when they are large; the paths written.

    The graph must be valid ONNX: the checker of ONNX reads it back, shapes and types inferred.
    `model` must not be used afterwards: large weights are moved out of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sum(len(t.raw_data) for t in model.graph.initializer) < INLINE_LIMIT:
        with atomic_path(path) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        written = [path]
    else:
        data = path.with_name(path.name + ".data")
        data.unlink(missing_ok=True)
        onnx.save_model(model, path, save_as_external_data=True, location=data.name)
        written = [path, data]
    onnx.checker.check_model(str(path), full_check=True)
    return written


def _declared(tensor: Tensor) -> tuple[str, str, list[int | str]]:
    return (
        tensor.name,
        tensor.dtype,
        [d.name if isinstance(d, Dim) else d for d in tensor.shape],
    )


def _described(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | str]]:
    kind = value.type.tensor_type
    sizes = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return value.name, _TYPES.get(kind.elem_type, str(kind.elem_type)), sizes
