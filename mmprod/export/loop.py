"""Prologue, body and epilogue -> one ONNX graph around one Loop.

    inputs -> prologue -> constants, state -> Loop (T steps: body) -> state -> epilogue -> outputs

Each part is exported by itself and linked here, so the body may be cast to another precision first
and the exporter never sees a loop. What a step computes from constants alone (queries, keys and
values of a text that does not change, say) is computed once, before the Loop. The trip count is a
constant and the condition an explicit `true`, because TensorRT wants both. All weights lie in the
outer graph, equal ones once; the body reads them, and what was computed before, from the scope
around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx
from onnx import TensorProto, helper

BODY = "loop"
STAYING = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""operators that are not moved out of the Loop: backends look for them beside their product"""


@dataclass(frozen=True)
class LoopParts:
    """The exported parts of a LoopModule and how their values are called.

    prologue: inputs -> (*constants, *state); body: step (1,) int64, *constants, *state -> state;
    epilogue: (*constants, *state) -> outputs. Interfaces meet by position.
    """

    prologue: onnx.ModelProto
    body: onnx.ModelProto
    epilogue: onnx.ModelProto
    constants: tuple[str, ...]
    state: tuple[str, ...]
    steps: int


def compose_loop(parts: LoopParts, name: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """The linked graph, with the inputs of the prologue and outputs called `outputs`."""
    shared = _Weights()
    inputs = [value.name for value in parts.prologue.graph.input]
    constants = [f"{BODY}/{constant}" for constant in parts.constants]
    first = [f"{BODY}/{state}_first" for state in parts.state]
    last = [f"{BODY}/{state}_last" for state in parts.state]
    nodes = _link(parts.prologue.graph, "prologue", (inputs, [*constants, *first]), shared)
    shared.put(helper.make_tensor(f"{BODY}/steps", TensorProto.INT64, (), [parts.steps]))
    shared.put(helper.make_tensor(f"{BODY}/go_on", TensorProto.BOOL, (), [True]))
    shared.put(helper.make_tensor(f"{BODY}/axis", TensorProto.INT64, (1,), [0]))
    early, body = _body_graph(parts, constants, shared)
    nodes += early
    taken = [f"{BODY}/steps", f"{BODY}/go_on", *first]
    nodes.append(helper.make_node("Loop", taken, last, f"{BODY}/Loop", body=body))
    nodes += _link(parts.epilogue.graph, "epilogue", ([*constants, *last], outputs), shared)
    given = zip(parts.epilogue.graph.output, outputs, strict=True)
    graph = helper.make_graph(
        nodes,
        name,
        parts.prologue.graph.input,
        [_renamed(value, output) for value, output in given],
        shared.used_by(nodes),
    )
    model = helper.make_model(graph, opset_imports=parts.body.opset_import)
    model.ir_version = parts.body.ir_version
    model.producer_name = parts.body.producer_name
    model.producer_version = parts.body.producer_version
    return model


def _body_graph(
    parts: LoopParts, constants: Sequence[str], shared: _Weights
) -> tuple[list[onnx.NodeProto], onnx.GraphProto]:
    """What every step would compute alike, and the subgraph of the Loop: (iteration, condition,
    *state) -> (condition, *state).
    """
    iteration, condition, step = f"{BODY}/iteration", f"{BODY}/condition", f"{BODY}/step"
    graph = parts.body.graph
    states = list(graph.input)[1 + len(parts.constants) :]
    carried = [f"{BODY}/{state}" for state in parts.state]
    results = [f"{BODY}/{state}_next" for state in parts.state]
    linked = _link(graph, BODY, ([step, *constants, *carried], results), shared)
    early, changing = _apart(linked, {step, *carried}, set(results))
    nodes = [
        helper.make_node("Unsqueeze", [iteration, f"{BODY}/axis"], [step], step),
        *changing,
        helper.make_node("Identity", [condition], [f"{condition}_next"], condition),
    ]
    taken = [
        helper.make_tensor_value_info(iteration, TensorProto.INT64, ()),
        helper.make_tensor_value_info(condition, TensorProto.BOOL, ()),
        *(_renamed(value, name) for value, name in zip(states, carried, strict=True)),
    ]
    left = [
        helper.make_tensor_value_info(f"{condition}_next", TensorProto.BOOL, ()),
        *(_renamed(value, name) for value, name in zip(graph.output, results, strict=True)),
    ]
    return early, helper.make_graph(nodes, BODY, taken, left)


def _apart(
    nodes: Sequence[onnx.NodeProto], changing: set[str], results: set[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Nodes that read nothing which changes from step to step, and the others, both in order.

    `changing`: values that do; `results`: those that the Loop must make itself. The early ones keep
    the names of the body's nodes, by which `islands.split_loop` finds them.
    """
    early, inside = [], []
    known = set(changing)
    for node in nodes:
        stays = node.op_type in STAYING or not results.isdisjoint(node.output)
        if stays or not known.isdisjoint(node.input):
            inside.append(node)
            known.update(node.output)
        else:
            early.append(node)
    return early, inside


def _link(
    graph: onnx.GraphProto,
    prefix: str,
    around: tuple[Sequence[str], Sequence[str]],
    shared: _Weights,
) -> list[onnx.NodeProto]:
    """A part's nodes with inputs and outputs called as `around` says, all else prefixed.

    Its weights go to `shared`. An output that no node of the part makes (an input handed through)
    gets an Identity; the others get none, because TensorRT lets uint8 come from nothing but the
    cast that makes a graph output.
    """
    inputs, outputs = around
    names = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    names |= {tensor.name: shared.add(tensor, prefix) for tensor in graph.initializer}
    wanted = {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        names.update((n, wanted.get(n, f"{prefix}/{n}")) for n in node.output if n)
        copy.name = f"{prefix}/{node.name}"
        copy.input[:] = [names[name] if name else "" for name in node.input]
        copy.output[:] = [names[name] if name else "" for name in node.output]
        nodes.append(copy)
    for value, name in zip(graph.output, outputs, strict=True):
        if names[value.name] != name:
            nodes.append(helper.make_node("Identity", [names[value.name]], [name], name))
    return nodes


class _Weights:
    """The initializers of the outer graph; equal content is stored once, whichever part has it."""

    def __init__(self) -> None:
        self._by_content: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}

    def add(self, tensor: onnx.TensorProto, prefix: str) -> str:
        """Take a weight of a part, and say under which name its content is found."""
        content = tensor.raw_data or tensor.SerializeToString(deterministic=True)
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
        if key not in self._by_content:
            name = tensor.name if tensor.name not in self._tensors else f"{prefix}/{tensor.name}"
            self._by_content[key] = name
            self._tensors[name] = tensor
        return self._by_content[key]

    def put(self, tensor: onnx.TensorProto) -> None:
        """Take a tensor under its own name."""
        self._tensors[tensor.name] = tensor

    def used_by(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """The tensors that these nodes or their subgraphs read, in the order they came."""
        read: set[str] = set()
        for node in nodes:
            read.update(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    read.update(name for inner in attribute.g.node for name in inner.input)
        kept = [(name, tensor) for name, tensor in self._tensors.items() if name in read]
        return [t if t.name == name else _renamed(t, name) for name, t in kept]


T = TypeVar("T", onnx.ValueInfoProto, onnx.TensorProto)


def _renamed(value: T, name: str) -> T:
    copy = type(value)()
    copy.CopyFrom(value)
    copy.name = name
    return copy
