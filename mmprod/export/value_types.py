"""The element type of every value of an ONNX graph, without running shape inference.

Complete for the operators this package exports: most give the type of their first input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

Types = dict[str, int]
"""value name -> onnx.TensorProto.DataType"""

_TO_BOOL = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"}
    | {"Not", "Or", "Xor"}
)
_TO_INT64 = frozenset({"ArgMax", "ArgMin", "Shape", "Size"})
_TYPE_INPUT = {"CastLike": 1, "DequantizeLinear": 1, "QuantizeLinear": 2, "Where": 1}
"""operators whose output has the type of another input than the first"""


def value_types(graph: onnx.GraphProto, outer: Mapping[str, int] | None = None) -> Types:
    """Types of inputs, initializers and node outputs. `outer`: what a subgraph sees around it."""
    types: Types = dict(outer or {})
    for value in graph.input:
        types[value.name] = value.type.tensor_type.elem_type
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
    for node in graph.node:
        for name, kind in zip(node.output, _output_types(node, types), strict=False):
            types[name] = kind
    return types


def walk(
    graph: onnx.GraphProto, outer: Mapping[str, int] | None = None
) -> Iterator[tuple[onnx.NodeProto, Types]]:
    """Every node of a graph and of its subgraphs, with the types that are visible to it."""
    types = value_types(graph, outer)
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from walk(attribute.g, types)


def _output_types(node: onnx.NodeProto, types: Types) -> list[int]:
    """The types of a node's outputs."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Loop":  # inputs: trip count, condition, state...
        return [types[name] for name in node.input[2:]]
    if node.op_type == "Cast":
        kind = attributes["to"].i
    elif node.op_type in _TO_BOOL:
        kind = TensorProto.BOOL
    elif node.op_type in _TO_INT64:
        kind = TensorProto.INT64
    elif node.op_type == "ConstantOfShape":
        kind = attributes["value"].t.data_type if "value" in attributes else TensorProto.FLOAT
    elif node.op_type == "Constant":
        kind = attributes["value"].t.data_type
    else:
        kind = types[node.input[_TYPE_INPUT.get(node.op_type, 0)]]
    return [kind] * len(node.output)
