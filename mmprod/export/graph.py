"""A graph of the catalog <-> the parts it is exported in.

A plain module is one part. A LoopModule is three: prologue, body (one step) and epilogue. Parts are
exported once, in fp32; each precision is a cast of the parts, linked and finished.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

from mmprod.export.calibrate import Measured
from mmprod.export.computed_types import assert_precision
from mmprod.export.graph_file import finish_graph
from mmprod.export.loop import LoopParts, compose_loop
from mmprod.export.mixed import int8_products, mix_model
from mmprod.export.onnx_export import Part
from mmprod.export.precision import CALIBRATED, MIXED, cast_model
from mmprod.export.quantize import quantize_model
from mmprod.graphs.modules import LoopModule
from mmprod.graphs.runner import example_inputs
from mmprod.graphs.spec import Dim, GraphSpec

EXAMPLE_BATCH = 2


def parts_of(spec: GraphSpec, module: nn.Module) -> list[Part]:
    """What has to be exported for a graph."""
    arrays = example_inputs(spec, EXAMPLE_BATCH, seed=0)
    example = tuple(torch.from_numpy(arrays[t.name]) for t in spec.inputs)
    inputs = tuple(t.name for t in spec.inputs)
    outputs = tuple(t.name for t in spec.outputs)
    dynamic = tuple(t.shape[0].name if isinstance(t.shape[0], Dim) else "" for t in spec.inputs)
    if not isinstance(module, LoopModule):
        return [Part(spec.name, module, inputs, outputs, example, dynamic)]
    with torch.no_grad():
        carried: tuple[Tensor, ...] = module.prologue(*example)
    names = (*module.constants, *module.state)
    batch = (dynamic[0],) * len(names)
    first, one, last = (f"{spec.name}.{part}" for part in ("prologue", "body", "epilogue"))
    step = torch.zeros(1, dtype=torch.int64)
    return [
        Part(first, module.prologue, inputs, _results(names), example, dynamic),
        Part(
            one,
            module.body,
            ("step", *names),
            _results(module.state),
            (step, *carried),
            ("", *batch),
        ),
        Part(last, module.epilogue, names, _results(outputs), carried, batch),
    ]


def assemble(
    spec: GraphSpec,
    module: nn.Module,
    exported: Mapping[str, onnx.ModelProto],
    precision: str,
    measured: Mapping[str, Measured] | None = None,
) -> onnx.ModelProto:
    """The finished graph in one precision, from the fp32 models of its parts by name.

    `measured`: of each part, by `calibrate.calibrate`; int8, fp8 and mixed need it.

    Raises ConfigError (precision, operator), NumericsError (a weight out of range) and
    PrecisionMismatch.
    """
    if isinstance(module, LoopModule):
        cast = {
            part: _converted(f"{spec.name}.{part}", exported, precision, measured)
            for part in ("prologue", "body", "epilogue")
        }
        parts = LoopParts(
            **cast, constants=module.constants, state=module.state, steps=module.steps
        )
        model = compose_loop(parts, spec.name, [t.name for t in spec.outputs])
    else:
        model = _converted(spec.name, exported, precision, measured)
    finish_graph(model, spec, precision)
    assert_precision(model, precision)
    return model


def _converted(
    part: str,
    exported: Mapping[str, onnx.ModelProto],
    precision: str,
    measured: Mapping[str, Measured] | None,
) -> onnx.ModelProto:
    """A part in its precision."""
    model = exported[part]
    if precision not in CALIBRATED:
        return cast_model(model, precision)
    if measured is None:
        raise ValueError(f"{part}: {precision} needs ranges")
    if precision == MIXED:
        return mix_model(model, measured[part].ranges, int8_products(measured[part].errors))
    return quantize_model(model, precision, measured[part].ranges)


def _results(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names for the outputs of a part, none of which is the name of an input."""
    return tuple(f"{name}_out" for name in names)
