"""What `quantize.py` and `mixed.py` need to know: run the fp32 parts on samples.

How large each activation gets: a copy of each part gets two more outputs per activation, its
largest absolute number and whether a NaN is in it, which ONNX Runtime's maximum passes over.
How much int8 moves each product: a second copy computes it once more between Q/DQ pairs.
The samples are of the run's validation data. The body of a sampler is run step by step, as its Loop
would run it, so every step counts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from mmprod.export.constants import fold
from mmprod.export.mixed import mixable
from mmprod.export.quantize import HALF_IN_FULL, Quantizer, Ranges, quantizable
from mmprod.graphs.modules import LoopModule
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.ort import PartRunner

_LARGEST, _NAN = "/largest", "/nan"
_MOVED, _LENGTH = "/moved", "/length"
HALF_ENDS = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Measured:
    """Of one part. `ranges`: largest absolute number of each activation, NaN where one was met.
    `errors`: by product, how far int8 alone moves its result, relative to its length; NaN where the
    samples do not tell (nothing but zeros) or fp16 does not hold what it reads.
    """

    ranges: Ranges
    errors: Mapping[str, float] = field(default_factory=dict)


def calibrate(
    spec: GraphSpec,
    module: nn.Module,
    exported: Mapping[str, onnx.ModelProto],
    inputs: Sequence[Mapping[str, Array]],
    *,
    errors: bool = False,
) -> dict[str, Measured]:
    """By part, over all inputs of the graph; `errors` too if asked for, in a second run.

    Raises NumericsError, with `errors`, for a weight or an activation that is not finite.
    """
    names = [spec.name]
    if isinstance(module, LoopModule):
        names = [f"{spec.name}.{part}" for part in ("prologue", "body", "epilogue")]
    models = {name: exported[name] for name in names}
    maxima = _run(module, models, {n: _with_maxima(m) for n, m in models.items()}, inputs)
    ranges = {name: _ranges(maxima[name]) for name in names}
    if not errors:
        return {name: Measured(ranges[name]) for name in names}
    twins = {name: _with_twins(model, ranges[name]) for name, model in models.items()}
    sums = _run(module, models, twins, inputs)
    return {
        name: Measured(ranges[name], _errors(models[name], ranges[name], sums[name]))
        for name in names
    }


def _ranges(found: Mapping[str, float]) -> dict[str, float]:
    names = [name.removesuffix(_LARGEST) for name in found if name.endswith(_LARGEST)]
    return {name: math.nan if found[name + _NAN] else found[name + _LARGEST] for name in names}


def _errors(model: onnx.ModelProto, ranges: Ranges, found: Mapping[str, float]) -> dict[str, float]:
    errors = {}
    for node in mixable(model.graph):
        length, largest = found[node.name + _LENGTH], ranges[node.input[0]]
        told = length > 0 and 0 < largest <= HALF_ENDS
        errors[node.name] = math.sqrt(found[node.name + _MOVED] / length) if told else math.nan
    return errors


def _run(
    module: nn.Module,
    models: Mapping[str, onnx.ModelProto],
    extended: Mapping[str, onnx.ModelProto],
    inputs: Sequence[Mapping[str, Array]],
) -> dict[str, dict[str, float]]:
    """By part, the numbers that `extended` shows beside the outputs of `models`."""
    with tempfile.TemporaryDirectory(prefix="mmprod-calibrate-") as folder:
        parts = [
            _Watched(model, extended[name], Path(folder) / f"{name}.onnx")
            for name, model in models.items()
        ]
        for given in inputs:
            if isinstance(module, LoopModule):
                _run_loop(module, parts, given)
            else:
                parts[0](given)
    return {name: part.found for name, part in zip(models, parts, strict=True)}


class _Watched:
    """A part that remembers the numbers it shows beside its own outputs: the sums of squares added
    up, of all others the largest.
    """

    def __init__(self, model: onnx.ModelProto, extended: onnx.ModelProto, path: Path) -> None:
        self._outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input]
        shown = [value.name for value in extended.graph.output]
        self.found = {name: 0.0 for name in shown if name not in self._outputs}
        onnx.save_model(extended, path, save_as_external_data=True, location=f"{path.name}.data")
        self._runner = PartRunner(path)

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The part's own outputs, in order."""
        found = self._runner({name: inputs[name] for name in self.inputs})
        for name, before in self.found.items():
            value = float(found[name])
            squares = name.endswith((_MOVED, _LENGTH))
            self.found[name] = before + value if squares else max(before, value)
        return [found[name] for name in self._outputs]


def _run_loop(module: LoopModule, parts: Sequence[_Watched], given: Mapping[str, Array]) -> None:
    """One run of a sampler through its three parts, whose interfaces meet by position."""
    first, step, last = parts
    carried = first(given)
    constants = carried[: len(module.constants)]
    state = carried[len(module.constants) :]
    for index in range(module.steps):
        values = [np.array([index], np.int64), *constants, *state]
        state = step(dict(zip(step.inputs, values, strict=True)))
    last(dict(zip(last.inputs, [*constants, *state], strict=True)))


def _with_maxima(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the outputs `NAME/largest` and `NAME/nan` (0 or 1) for each activation."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for name in dict.fromkeys(node.input[0] for node in quantizable(model.graph)):
        size, flag, number = f"{name}/abs", f"{name}/is_nan", f"{name}/is_nan_float"
        out.graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("ReduceMax", [size], [name + _LARGEST], keepdims=0),
                helper.make_node("IsNaN", [name], [flag]),
                helper.make_node("Cast", [flag], [number], to=TensorProto.FLOAT),
                helper.make_node("ReduceMax", [number], [name + _NAN], keepdims=0),
            ]
        )
        _show(out, name + _LARGEST, name + _NAN)
    return out


def _with_twins(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """A copy in which each product that may be is computed once more in int8, with the outputs
    `NODE/moved`, the squared distance of the two results, and `NODE/length`, the squared length of
    the exact one.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    products = mixable(out.graph)
    fold(out, [node.input[1] for node in products])
    names, nodes = {node.name for node in products}, list(out.graph.node)
    del out.graph.node[:]
    for node in nodes:
        out.graph.node.append(node)
        if node.name not in names:
            continue
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = f"{node.name}/twin", f"{node.output[0]}/twin"
        difference = f"{node.output[0]}/difference"
        out.graph.node.append(twin)
        out.graph.node.extend(
            [
                helper.make_node("Sub", [twin.output[0], node.output[0]], [difference]),
                _squares(difference, node.name + _MOVED),
                _squares(node.output[0], node.name + _LENGTH),
            ]
        )
        _show(out, node.name + _MOVED, node.name + _LENGTH)
    twins = {f"{name}/twin" for name in names}
    Quantizer(out.graph, "int8", ranges, twins, scales=HALF_IN_FULL).run()
    return out


def _squares(name: str, result: str) -> onnx.NodeProto:
    return helper.make_node("ReduceSumSquare", [name], [result], keepdims=0)


def _show(model: onnx.ModelProto, *names: str) -> None:
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ()) for name in names
    )
