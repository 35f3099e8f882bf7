"""How large each activation gets that `quantize.py` will quantize: run the fp32 parts on samples.

A copy of each part gets two more outputs per activation, its largest absolute number and whether a
NaN is in it, which ONNX Runtime's maximum passes over; the samples
of the run's validation data go through it in ONNX Runtime. The body of a sampler is run step by
step, as its Loop would run it, so every step counts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from mmprod.export.quantize import quantizable
from mmprod.graphs.modules import LoopModule
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.ort import PartRunner

_LARGEST = "/largest"
_NAN = "/nan"


def calibrate(
    spec: GraphSpec,
    module: nn.Module,
    exported: Mapping[str, onnx.ModelProto],
    inputs: Iterable[Mapping[str, Array]],
) -> dict[str, dict[str, float]]:
    """By part, the largest absolute number of each activation over all inputs of the graph."""
    with tempfile.TemporaryDirectory(prefix="mmprod-calibrate-") as folder:
        if not isinstance(module, LoopModule):
            watched = _Watched(spec.name, exported[spec.name], Path(folder))
            for given in inputs:
                watched(given)
            return {spec.name: watched.largest}
        names = [f"{spec.name}.{part}" for part in ("prologue", "body", "epilogue")]
        first, step, last = (_Watched(n, exported[n], Path(folder)) for n in names)
        for given in inputs:
            _run_loop(module, first, step, last, given)
        return dict(zip(names, (first.largest, step.largest, last.largest), strict=True))


class _Watched:
    """A part that remembers how large its activations were."""

    def __init__(self, name: str, model: onnx.ModelProto, folder: Path) -> None:
        watched = [node.input[0] for node in quantizable(model.graph)]
        self.largest = dict.fromkeys(watched, 0.0)
        self._outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input]
        path = folder / f"{name}.onnx"
        onnx.save_model(
            _with_maxima(model, list(self.largest)),
            path,
            save_as_external_data=True,
            location=f"{name}.data",
        )
        self._runner = PartRunner(path)

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The part's own outputs, in order."""
        found = self._runner({name: inputs[name] for name in self.inputs})
        for name in self.largest:
            value = math.nan if found[name + _NAN] else float(found[name + _LARGEST])
            self.largest[name] = float(np.maximum(self.largest[name], value))  # NaN stays
        return [found[name] for name in self._outputs]


def _run_loop(
    module: LoopModule,
    first: _Watched,
    step: _Watched,
    last: _Watched,
    given: Mapping[str, Array],
) -> None:
    """One run of a sampler through its three parts, whose interfaces meet by position."""
    carried = first(given)
    constants = carried[: len(module.constants)]
    state = carried[len(module.constants) :]
    for index in range(module.steps):
        values = [np.array([index], np.int64), *constants, *state]
        state = step(dict(zip(step.inputs, values, strict=True)))
    last(dict(zip(last.inputs, [*constants, *state], strict=True)))


def _with_maxima(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with the outputs `NAME/largest` and `NAME/nan` (0 or 1) for each of these values."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for name in names:
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
        out.graph.output.extend(
            helper.make_tensor_value_info(name + extra, TensorProto.FLOAT, ())
            for extra in (_LARGEST, _NAN)
        )
    return out
