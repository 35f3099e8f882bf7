"""Rebuilds of single graphs for `mmprod parity explain`: a fresh fp32 export to compare with, and
a reduced graph in which some modules, islands, stay in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mmprod.checkpoint.models import load_models
from mmprod.checkpoint.run import Run
from mmprod.errors import ConfigError
from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import PREFIX, finish_graph, save_graph
from mmprod.export.loop import BODY, LoopParts, compose_loop
from mmprod.export.onnx_export import SCOPE, export_part
from mmprod.export.precision import CALIBRATED, cast_model
from mmprod.export.value_types import Types, value_types
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.spec import GraphSpec

ISLANDS = f"{PREFIX}islands"
"""Note in a graph: the modules that were kept in fp32, by commas."""
_PARTS = ("prologue", BODY, "epilogue")
"""How the names of nodes begin in a sampler, by the part they came from."""


def export_fresh(run: Run, graph: str, path: Path) -> None:
    """One graph of a run in fp32, traced anew, at `path`. Raises as `assemble` does."""
    models = load_models(run)
    spec = build_catalog(run.dims, run.config.sampler)[graph]
    module = build_module(
        graph,
        codec=models.codec,
        fusion=models.fusion,
        dims=run.dims,
        sampler=run.config.sampler,
    )
    exported = {part.name: export_part(part) for part in parts_of(spec, module)}
    save_graph(assemble(spec, module, exported, "fp32"), path)


def cast_with_islands(
    source: Path, spec: GraphSpec, precision: str, islands: Sequence[str], path: Path
) -> dict[str, Any]:
    """A finished fp32 graph -> the same in `precision`, but for the islands, at `path`; what a
    bundle notes of it.

    A sampler is taken apart, cast and put together again. Raises ConfigError for int8, fp8 and
    mixed, which need ranges, and for an island that names no module of the graph; NumericsError for
    a weight beyond the precision.
    """
    if precision in CALIBRATED:
        raise ConfigError(
            f"{precision} graphs have no fp32 islands", hint="use fp16 or fp32 of this graph"
        )
    model = onnx.load(source)
    _check_modules(model, spec, islands)
    if spec.loop_steps:
        out = compose_loop(
            _cast_parts(split_loop(model), precision, islands),
            spec.name,
            [tensor.name for tensor in spec.outputs],
        )
    else:
        out = cast_model(_scoped(model), precision, islands)
    everywhere = [*islands, *(f"{part}/{island}" for part in _PARTS for island in islands)]
    assert_precision(out, precision, everywhere)
    finish_graph(out, spec, precision)
    out.metadata_props.add(key=ISLANDS, value=",".join(islands))
    meta = {
        "precision": precision_of(out),
        "opset": out.opset_import[0].version,
        "nodes": len(out.graph.node),
        "islands": list(islands),
    }
    save_graph(out, path)
    return meta


def split_loop(model: onnx.ModelProto) -> LoopParts:
    """A finished sampler -> the parts that `compose_loop` made it of; only inner names differ."""
    graph = model.graph
    at = next(n for n, node in enumerate(graph.node) if node.op_type == "Loop")
    loop = graph.node[at]
    early = [node for node in graph.node[:at] if node.name.startswith(f"{BODY}/")]
    before = [node for node in graph.node[:at] if not node.name.startswith(f"{BODY}/")]
    after = list(graph.node[at + 1 :])
    body: onnx.GraphProto = next(a.g for a in loop.attribute if a.name == "body")
    types = value_types(graph)
    first, last = list(loop.input)[2:], list(loop.output)
    made = {name for node in before for name in node.output}
    read = {name for node in (*early, *body.node, *after) for name in node.input}
    constants = sorted((made & read) - {*first})
    known = _infos(constants, types)
    later = [node for node in body.node[1:] if node.output[0] != body.output[0].name]
    step = helper.make_tensor_value_info(body.node[0].output[0], TensorProto.INT64, (1,))
    states = list(body.input)[2:]
    steps = next(t for t in graph.initializer if t.name == loop.input[0])
    return LoopParts(
        prologue=_part(model, before, graph.input, [*known, *_infos(first, types)]),
        body=_part(model, [*early, *later], [step, *known, *states], list(body.output)[1:]),
        epilogue=_part(model, after, [*known, *_infos(last, types)], graph.output),
        constants=tuple(name.removeprefix(f"{BODY}/") for name in constants),
        state=tuple(value.name.removeprefix(f"{BODY}/") for value in states),
        steps=int(onnx.numpy_helper.to_array(steps)),
    )


def _infos(names: Iterable[str], types: Types) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, types[name], None) for name in names]


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Some nodes as a model of their own, with the weights that they read."""
    read = {name for node in nodes for name in node.input} | {value.name for value in outputs}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, model.graph.name, inputs, outputs, weights)
    for node in graph.node:
        head, _, rest = node.name.partition("/")
        node.name = rest if head in _PARTS and rest else node.name
    part = helper.make_model(graph, opset_imports=model.opset_import)
    part.ir_version = model.ir_version
    part.producer_name, part.producer_version = model.producer_name, model.producer_version
    return _scoped(part)


def _cast_parts(parts: LoopParts, precision: str, islands: Sequence[str]) -> LoopParts:
    cast: Mapping[str, onnx.ModelProto] = {
        name: cast_model(getattr(parts, name), precision, islands)
        for name in ("prologue", "body", "epilogue")
    }
    return LoopParts(**cast, constants=parts.constants, state=parts.state, steps=parts.steps)


def _scoped(model: onnx.ModelProto) -> onnx.ModelProto:
    """In place: the notes from which the caster reads scopes; a finished graph has them in the
    names of its nodes alone.
    """
    for node in model.graph.node:
        node.metadata_props.add(key=SCOPE, value=node.name.rpartition("/")[0])
    return model


def _check_modules(model: onnx.ModelProto, spec: GraphSpec, islands: Sequence[str]) -> None:
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    nodes = [node for graph in (model.graph, *bodies) for node in graph.node]
    scopes = {node.name.rpartition("/")[0] for node in nodes}
    scopes |= {scope.partition("/")[2] for scope in scopes if scope.partition("/")[0] in _PARTS}
    for island in islands:
        if not any(s == island or s.startswith(f"{island}.") for s in scopes):
            raise ConfigError(f"{spec.name} has no module {island}", hint="see the blocks listed")
