"""One nn.Module -> one ONNX graph in fp32, by PyTorch's dynamo exporter.

The graph comes out small (constants folded, equal weights stored once), with a named dynamic batch
and without traces of the machine it was made on. Each node keeps one note, `SCOPE`: the path of the
torch module it came from, by which the caster decides what stays fp32 and engines name layers.

A scope counts the weights too: a node that reads a weight of `codec.quantizer`, or a constant
computed from weights of which that one is the largest, belongs there, even when the model computes
it in a method and not in the forward of that submodule.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch
from torch import Tensor, nn

OPSET = 20
SCOPE = "mmprod.scope"
_WEIGHT, _MADE = "mmprod.weight.", "mmprod.made."
_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""what torch notes for the size of an input"""
_MOVES = ("Transpose", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity")


@dataclass(frozen=True)
class Part:
    """A module to export: names of its inputs and outputs and one example of each input.

    `dynamic`: per input the name of its first dimension where that may vary, else "". The example
    must have a size of at least 2 there, because sizes 0 and 1 are special to the exporter.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    dynamic: tuple[str, ...]


def export_part(part: Part) -> onnx.ModelProto:
    """The fp32 ONNX graph of a part, weights inside, at opset `OPSET`."""
    for name, tensor, dim in zip(part.inputs, part.example, part.dynamic, strict=True):
        if dim and tensor.shape[0] < 2:
            raise ValueError(f"{part.name}: the example of {name} needs a {dim} of at least 2")
    dims = {name: torch.export.Dim(name, min=1) for name in part.dynamic if name}
    shapes = tuple({0: dims[name]} if name else {} for name in part.dynamic)
    with _quiet(), _uncollected(), torch.no_grad():
        captured = torch.export.export(
            part.module.eval(), part.example, dynamic_shapes=shapes, strict=False
        )
        program = torch.onnx.export(
            captured, (), opset_version=OPSET, dynamo=True, optimize=False, verbose=False
        )
    if program is None:
        raise RuntimeError(f"{part.name}: the exporter of PyTorch returned nothing")
    model = program.model
    _note_weights(model.graph)
    _simplify(model)
    _name_weights(model.graph)
    _name_nodes(model.graph)
    _name_interface(model, part)
    _name_dimensions(model.graph, part.dynamic)
    model.metadata_props.clear()
    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]
    return proto


def _note_weights(graph: ir.Graph) -> None:
    """Note on each node the weights it reads, as they are or moved (folding will give them other
    names), and of each constant that is computed from weights the largest of them.
    """
    moved: dict[ir.Value, ir.Value] = {}
    made: dict[ir.Value, ir.Value | None] = {}
    """values that depend on no input, and the weight that they stand for"""
    for weight in graph.initializers.values():
        made[weight] = None
        if "." in str(weight.name):
            made[weight] = moved[weight] = weight
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        for index, value in enumerate(node.inputs):
            if value is not None and (source := moved.get(value) or made.get(value)) is not None:
                key = _WEIGHT if value in moved else _MADE
                node.metadata_props[f"{key}{index}"] = str(source.name)
        if all(value in made for value in read):
            weights = [source for value in read if (source := made[value]) is not None]
            made |= dict.fromkeys(node.outputs, max(weights, key=_size, default=None))
        if node.op_type in _MOVES and read[0] in moved:
            moved |= dict.fromkeys(node.outputs, moved[read[0]])


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


def _simplify(model: ir.Model) -> None:
    """Fold constants, drop what is unused, store and compute equal things once.

    The rewrite rules of `onnxscript.optimizer.optimize` are left out: they take ten times as long
    as all this and only remove a few operators that do nothing.
    """
    for _ in range(2):
        onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
        passes.RemoveUnusedNodesPass()(model)
    for simplify in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=sys.maxsize),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
    ):
        simplify(model)


def _name_weights(graph: ir.Graph) -> None:
    """Give folded weights (a transposed matrix, say) the name of the parameter they come from."""
    for node in graph:
        for index, value in enumerate(node.inputs):
            name = node.metadata_props.get(f"{_WEIGHT}{index}")
            if name is None or value is None or not value.is_initializer() or value.name == name:
                continue
            if "." in str(value.name):
                continue
            while name in graph.initializers:
                name += "_"
            value.name = name


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node by its scope, and keep the scope as its only note."""
    for index, node in enumerate(graph):
        scopes = ast.literal_eval(node.metadata_props.get(_TORCH_SCOPES, "[]"))
        modules = [name for name in scopes[-2:-1] if name != _NO_MODULE]
        weights = [v for k, v in node.metadata_props.items() if k.startswith((_WEIGHT, _MADE))]
        modules += [name.rpartition(".")[0] for name in weights]
        scope = max(modules, key=len, default="")
        node.metadata_props.clear()
        node.metadata_props[SCOPE] = scope
        node.doc_string = None
        node.name = f"{scope}/{node.op_type}_{index}" if scope else f"{node.op_type}_{index}"


def _name_interface(model: ir.Model, part: Part) -> None:
    """Give inputs and outputs the names of the part, and all other values names of their own."""
    graph = model.graph
    taken = {*part.inputs, *part.outputs}
    for value in (value for node in graph for value in node.outputs):
        if value.name in taken:
            value.name = f"{value.name}_value"
    for values, names in ((graph.inputs, part.inputs), (graph.outputs, part.outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    graph.name = part.name
    passes.NameFixPass()(model)
    found = tuple(v.name for v in (*graph.inputs, *graph.outputs))
    if found != (*part.inputs, *part.outputs):
        raise RuntimeError(f"{part.name}: the graph has the interface {found}")


def _name_dimensions(graph: ir.Graph, dynamic: tuple[str, ...]) -> None:
    """Give dynamic dimensions the names of the part instead of the exporter's symbols."""
    shapes = {value: value.shape for value in graph.inputs if value.shape is not None}
    pairs = zip(graph.inputs, dynamic, strict=True)
    names = {str(shapes[value][0]): name for value, name in pairs if name and value in shapes}
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
            value.shape = ir.Shape([names.get(str(size), size) for size in sizes])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence two messages of the exporter that say nothing about the model.

    It logs that torchvision is not installed, and trips over a deprecation of its own when it
    copies the captured program.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let garbage wait: tracing makes millions of small objects, nearly all of which stay, and
    looking through them again and again took a quarter of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
