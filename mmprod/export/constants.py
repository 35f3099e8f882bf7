"""Values of a graph that depend on weights alone, and how they become weights.

The exporter leaves some weights behind a run-time operator: the matrix that two modules share is
transposed by a node, the table behind the logits is a sum that is sliced and transposed. Whoever
looks for stored weights has to look through these.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from mmprod.export.value_types import walk
from mmprod.graphs.runner import Array


def constant_values(graph: onnx.GraphProto) -> set[str]:
    """Names of weights and of all that is computed from weights alone, subgraphs included."""
    found = {tensor.name for tensor in graph.initializer}
    for node, _ in walk(graph):
        inside = any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        if node.input and not inside and found.issuperset(name for name in node.input if name):
            found.update(node.output)
    return found


def fold(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Make weights of these constant values, in place, and drop the nodes nothing reads any more.

    For graphs without subgraphs.
    """
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    wanted = [name for name in dict.fromkeys(names) if name not in stored]
    if not wanted:
        return
    for name, value in zip(wanted, _evaluate(model, wanted), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [node for node in graph.node if not set(node.output) <= set(wanted)]
    outputs = {value.name for value in graph.output}
    while True:
        read = outputs.union(*(node.input for node in kept))
        used = [node for node in kept if not read.isdisjoint(node.output)]
        if len(used) == len(kept):
            break
        kept = used
    del graph.node[:]
    graph.node.extend(kept)


def _evaluate(model: onnx.ModelProto, names: list[str]) -> list[Array]:
    """Constant values, computed by ONNX's own reference implementation."""
    needed, nodes = set(names), []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    part = onnx.helper.make_graph(
        nodes[::-1],
        "constants",
        [],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    opset = model.opset_import
    evaluator = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=opset))
    return list(evaluator.run(None, {}))
