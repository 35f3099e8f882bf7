"""Reading and changing ONNX graphs in memory: what damages, audits and the bisection share.

The one file of this package that needs onnx; it is imported when a graph is opened. A block is a
module path of ours: the exporter names each node `PATH/Operator_number`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.graphs.runner import Array

DENSE = ("MatMul", "Gemm", "Conv")
OUTSIDE = "(graph)"
"""The block of nodes that no submodule owns."""

_ADDED = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
_PASSING = ("Cast", "Transpose", "Reshape", "Identity")


def import_onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed", hint="pip install 'mmprod[export]'"
        ) from error
    return onnx


def block_of(node: Any) -> str:
    """The module path of a node, `loop/` before it inside a loop; OUTSIDE for one without."""
    path = "" if is_added(node.name) else node.name.rpartition("/")[0]
    return path or OUTSIDE


def is_added(name: str) -> bool:
    """Whether a change of precision put the node of this name between the others."""
    return not _ADDED.isdisjoint(name.split("/")[:-1])


def block_reading(model: Any, name: str) -> str:
    """The block of the node called `name`, or of the first node that reads the weight `name`."""
    for _, node in nodes_of(model):
        if name == node.name or name in node.input:
            return block_of(node)
    return OUTSIDE


def graphs_of(graph: Any) -> list[Any]:
    """The graph and the bodies of its loops, at every depth."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(inner for body in bodies for inner in graphs_of(body))]


def nodes_of(model: Any) -> Iterator[tuple[Any, Any]]:
    """Every node with the graph that holds it."""
    for graph in graphs_of(model.graph):
        for node in graph.node:
            yield graph, node


def pick(
    model: Any, operators: tuple[str, ...], accept: Callable[[Any], bool] = lambda node: True
) -> tuple[Any, Any]:
    """The middle one of the nodes of these operators, with its graph. Raises ConfigError."""
    found = [
        (graph, node)
        for graph, node in nodes_of(model)
        if node.op_type in operators and accept(node)
    ]
    if not found:
        raise ConfigError(f"{model.graph.name} has no such {' or '.join(operators)}")
    return found[len(found) // 2]


def insert_after(graph: Any, node: Any, made: Any) -> None:
    """Put a node behind another one: it reads the old output and takes over its name.

    The first input of `made` is empty and filled in here.
    """
    name = node.output[0]
    node.output[0] = f"{name}_before"
    made.input[0], made.name = node.output[0], f"{node.name}_after_{len(graph.node)}"
    made.output[:] = [name]
    graph.node.insert(list(graph.node).index(node) + 1, made)


def reached(model: Any, operators: tuple[str, ...]) -> set[str]:
    """Names that these operators read, also through casts and changes of shape."""
    names: set[str] = set()
    for graph in graphs_of(model.graph):
        for node in reversed(graph.node):
            if node.op_type in operators or (
                node.op_type in _PASSING and not names.isdisjoint(node.output)
            ):
                names.update(node.input)
    return names


def weights_of(model: Any) -> list[Any]:
    """The float initializers."""
    onnx = import_onnx()
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return [weight for weight in model.graph.initializer if weight.data_type in floats]


def values_of(weight: Any) -> Array:
    """A copy of an initializer's values."""
    values: Array = import_onnx().numpy_helper.to_array(weight)
    return values.copy()


def put_values(weight: Any, values: Array) -> str:
    """Write the values back; the initializer's name."""
    weight.CopyFrom(import_onnx().numpy_helper.from_array(values, weight.name))
    return str(weight.name)


def add_weight(model: Any, name: str, values: Array | np.generic) -> str:
    """A new initializer; its name."""
    array = np.asarray(values)
    model.graph.initializer.append(import_onnx().numpy_helper.from_array(array, name))
    return name
