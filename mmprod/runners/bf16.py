"""A bf16 graph for processors without bf16 kernels: the same graph in fp32 that rounds like bf16.

ONNX Runtime has no bf16 Conv or Add for the CPU. Here each bf16 operator computes in fp32 on
numbers that bf16 holds, and its result is rounded to bf16 by a pair of casts: a product with fp32
sums and one rounding at its end, which is how tensor cores do it. An emulation, and `OrtRunner`
says so in its `backend`.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

BF16 = TensorProto.BFLOAT16
_TYPELESS = frozenset({"Cast", "QuantizeLinear", "Shape", "Size"})
"""operators whose results have another type than what they read"""
_MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "Neg", "Abs"}
    | {"Max", "Min", "Relu"}
)
"""operators whose results need no rounding when their inputs are bf16 numbers"""


def emulated(path: Path) -> bytes:
    """The graph in a file, rewritten and serialized. Graphs above 2 GB raise ValueError."""
    model = onnx.load(path)
    emulate(model)
    data: bytes = model.SerializeToString()
    return data


def emulate(model: onnx.ModelProto, kind: int = BF16) -> None:
    """Rewrite a graph in place. `kind`: FLOAT16 rounds like fp16 instead, which a CPU leaves out
    between two operators of its own accord.
    """
    _rewrite(model.graph, set(), kind)
    del model.graph.value_info[:]


def _rewrite(graph: onnx.GraphProto, outer: set[str], kind: int) -> None:
    """In place, subgraphs included. `outer`: what around a subgraph was of this kind."""
    reduced = set(outer)
    for tensor in graph.initializer:
        if tensor.data_type == kind:
            reduced.add(tensor.name)
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rewrite(attribute.g, reduced, kind)
        into = node.op_type == "Cast" and _target(node) == kind
        follows = node.op_type not in _TYPELESS and not reduced.isdisjoint(node.input)
        if not (into or follows):
            continue
        reduced.update(node.output)
        if into:  # its result stays fp32 until the pair of casts rounds it
            nodes.pop()
            nodes += _rounding(node.input[0], node.output[0], kind)
        elif node.op_type not in _MOVES:
            for place, name in enumerate(node.output):
                node.output[place] = f"{name}/exact"
                nodes += _rounding(f"{name}/exact", name, kind)
    del graph.node[:]
    graph.node.extend(nodes)


def _rounding(source: str, result: str, kind: int) -> list[onnx.NodeProto]:
    """source -> bf16, or the other kind -> fp32 result."""
    narrow = f"{result}/narrow"
    return [
        helper.make_node("Cast", [source], [narrow], to=kind),
        helper.make_node("Cast", [narrow], [result], to=TensorProto.FLOAT),
    ]


def _target(node: onnx.NodeProto) -> int:
    return int(next(a.i for a in node.attribute if a.name == "to"))
