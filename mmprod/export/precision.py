"""fp32 graph -> the same graph in fp16 or bf16, for strongly typed engines; int8 and fp8 are made
by quantize.py, and what has both fp16 and int8 by mixed.py.

Matrix products and convolutions run in half precision, and so do cheap operators between two of
them. Everything delicate stays fp32: norms, softmax, sums, exponentials, comparisons, the codebook
search and the arithmetic of sampling. Inputs and outputs of the graph keep their types.

Three steps. (1) In order of the graph, an operator that merely follows is half when all it reads
is. (2) Backwards, a follower of which nothing half reads goes back to fp32: the cast is needed
anyway and comes earlier. (3) Casts are put at the borders, one per value, and weights converted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mmprod.errors import ConfigError, NumericsError
from mmprod.export.onnx_export import SCOPE
from mmprod.export.value_types import value_types

PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "int8", "fp8")
BF16_OPSET = 23
"""the first versions of Conv and others that know bf16 are newer than opset 20"""

HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
FOLLOWERS = frozenset(
    {"Abs", "Add", "Clip", "Concat", "DepthToSpace", "Div", "Erf", "Expand", "Flatten", "Gather"}
    | {"Gelu", "Identity", "Max", "Min", "Mul", "Neg", "Pad", "Relu", "Reshape", "Resize"}
    | {"Sigmoid", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh", "Tile", "Transpose"}
    | {"Unsqueeze", "Where"}
)
TYPELESS = frozenset({"Shape", "Size"})
KEPT_SCOPES = frozenset({"quantizer", "sampling"})
"""names of modules that stay in fp32 with all they hold"""
_ONLY_FIRST = frozenset({"Resize"})
"""operators of which only the first input may be half"""
QUANTIZED: dict[str, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
MIXED = "mixed"
CALIBRATED = (*QUANTIZED, MIXED)
"""precisions that need to know how large activations get"""
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
_HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_SMALLEST_NORMAL = 2.0**-14
"""of fp16; bf16 reaches further, and is treated alike"""
_LARGEST: dict[int, float] = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 3.3895e38}


def check_precision_name(name: str) -> None:
    """Raises ConfigError, with the nearest known name, for a precision that cannot be exported."""
    if name not in PRECISIONS:
        near = difflib.get_close_matches(name.lower(), PRECISIONS, n=1, cutoff=0.4)
        raise ConfigError(
            f"unknown precision {name!r}, known: {', '.join(PRECISIONS)}",
            hint=f"did you mean {near[0]}?" if near else "choose one of the known ones",
        )


def cast_model(
    model: onnx.ModelProto, precision: str, islands: Sequence[str] = ()
) -> onnx.ModelProto:
    """A copy of an fp32 graph without subgraphs, in fp32 (an equal copy), fp16 or bf16.

    `islands`: module paths that stay in fp32 with all they hold, beside `KEPT_SCOPES`.

    Raises ConfigError for an unknown precision, NumericsError for a weight beyond its range.
    """
    check_precision_name(precision)
    if precision in CALIBRATED:
        raise ValueError(f"{precision} needs ranges: use quantize_model or mix_model")
    out = onnx.ModelProto()
    out.CopyFrom(model)
    if precision == "fp32":
        return out
    if precision == "bf16":
        out.opset_import[0].version = BF16_OPSET
    graph = out.graph
    plan = _Plan(graph, islands)
    _Rewriter(graph, plan.half, _HALF[precision]).run()
    return out


class _Plan:
    """Which nodes run in half precision: `half`, indices into `graph.node`."""

    def __init__(self, graph: onnx.GraphProto, islands: Sequence[str] = ()) -> None:
        self._graph = graph
        self._islands = islands
        self._types = value_types(graph)
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self.half = self._forward()
        self._backward()

    def _forward(self) -> set[int]:
        half: set[int] = set()
        half_values: set[str] = set()
        for index, node in enumerate(self._graph.node):
            if is_kept(scope_of(node), self._islands):
                continue
            computed = [name for name in self._floats(node) if name not in self._weights]
            follows = node.op_type in FOLLOWERS and half_values.issuperset(computed)
            if self._floats(node) and (node.op_type in HEAVY or (follows and self._fits(node))):
                half.add(index)
                half_values.update(node.output)
        return half

    def _backward(self) -> None:
        """Take followers back to fp32 of which no half node reads."""
        read_in_half: set[str] = set()
        for index in reversed(range(len(self._graph.node))):
            node = self._graph.node[index]
            if node.op_type in FOLLOWERS and read_in_half.isdisjoint(node.output):
                self.half.discard(index)
            if index in self.half:
                read_in_half.update(self._floats(node))

    def _floats(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in float_inputs(node) if self._types[name] == TensorProto.FLOAT]

    def _fits(self, node: onnx.NodeProto) -> bool:
        """The single numbers this node reads (an epsilon, a scale) survive in half precision."""
        for name in self._floats(node):
            if name in self._weights and np.prod(self._weights[name].dims) == 1:
                number = abs(float(numpy_helper.to_array(self._weights[name]).reshape(())))
                if number > _LARGEST[TensorProto.FLOAT16] or 0 < number < _SMALLEST_NORMAL:
                    return False
        return True


class _Rewriter:
    """Puts casts at the borders between fp32 and half nodes, and converts weights."""

    def __init__(self, graph: onnx.GraphProto, half: set[int], kind: int) -> None:
        self._graph, self._half, self._kind = graph, half, kind
        self._types = value_types(graph)
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = [value.name for value in graph.output]
        self._names: dict[tuple[str, int], str] = {}
        """(value, type) -> what it is called in that type"""
        self._nodes: list[onnx.NodeProto] = []
        self._converted: list[onnx.TensorProto] = []

    def run(self) -> None:
        for index, node in enumerate(self._graph.node):
            kind = self._kind if index in self._half else TensorProto.FLOAT
            chosen = set(float_inputs(node))
            for place, name in enumerate(node.input):
                if name in chosen and self._types.get(name) == TensorProto.FLOAT:
                    node.input[place] = self._as(name, None if node.op_type in TYPELESS else kind)
            self._nodes.append(node)
            for place, name in enumerate(node.output):
                if self._types.get(name) == TensorProto.FLOAT:
                    node.output[place] = self._define(name, kind)
        for name in self._outputs:
            if self._types[name] == TensorProto.FLOAT:
                self._as(name, TensorProto.FLOAT)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        self._replace_weights()

    def _define(self, name: str, kind: int) -> str:
        """What a node calls its output: a half graph output leaves the name to its fp32 cast."""
        defined = name
        if kind != TensorProto.FLOAT and name in self._outputs:
            defined = f"{name}_half"
        self._names[name, kind] = defined
        return defined

    def _as(self, name: str, kind: int | None) -> str:
        """What the value is called in this type (None: in any), casting it if need be."""
        known = [k for k in (self._kind, TensorProto.FLOAT) if (name, k) in self._names]
        if kind is None:
            return self._names[name, known[0]] if known else name
        if (name, kind) in self._names:
            return self._names[name, kind]
        if name in self._weights:
            return self._convert(name, kind)
        source = self._names[name, known[0]] if known else name
        if not known and kind == TensorProto.FLOAT:
            return name
        target = f"{name}_half"
        if kind == TensorProto.FLOAT:
            target = name if name in self._outputs else f"{name}_fp32"
        cast = onnx.helper.make_node("Cast", [source], [target], f"Cast/{target}", to=kind)
        self._nodes.append(cast)
        self._names[name, kind] = target
        return target

    def _convert(self, name: str, kind: int) -> str:
        """The weight in this type."""
        if kind == TensorProto.FLOAT:
            return name
        self._converted.append(_to_half(self._weights[name], kind))
        self._names[name, kind] = self._converted[-1].name
        return self._converted[-1].name

    def _replace_weights(self) -> None:
        """Drop weights nothing reads any more, add the converted ones."""
        used = {name for node in self._nodes for name in node.input} | {*self._outputs}
        kept = [t for t in (*self._graph.initializer, *self._converted) if t.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def float_inputs(node: onnx.NodeProto) -> Iterable[str]:
    """The inputs of a node whose type may change with its precision."""
    names = node.input[:1] if node.op_type in _ONLY_FIRST else node.input
    return [name for name in names if name]


def is_kept(path: str, islands: Sequence[str] = ()) -> bool:
    """Whether a module path or node name lies in one of `KEPT_SCOPES` or of the `islands`."""
    inside = any(path == root or path.startswith((f"{root}.", f"{root}/")) for root in islands)
    return inside or not KEPT_SCOPES.isdisjoint(re.split(r"[./]", path))


def scope_of(node: onnx.NodeProto) -> str:
    """The path of the torch module a node came from; "" when it is not known."""
    return next((p.value for p in node.metadata_props if p.key == SCOPE), "")


def _to_half(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    """A weight in half precision. Raises NumericsError when it does not fit or is not finite."""
    values = numpy_helper.to_array(tensor)
    largest, limit = float(np.abs(values).max(initial=0)), _LARGEST[kind]
    if not largest <= limit:  # also true for NaN
        raise NumericsError(
            f"the weight {tensor.name} reaches {largest:g}, {NAMES[kind]} ends at {limit:g}",
            hint="export with --precision fp32, or bf16, whose range is that of fp32",
        )
    return numpy_helper.from_array(values.astype(_DTYPES[kind]), f"{tensor.name}_half")
