"""fp32 graph -> the same graph with int8 products where they bear it, and fp16 elsewhere.

    products that bear it:      activation -> Q/DQ (int8) --\\
                                weight (int8) -> DQ ---------> MatMul or Gemm, results fp16
    others, those in attention: fp16, as in an fp16 graph
    norms, softmax, sampling:   fp32, as in an fp16 graph

A product of a stored weight is int8 where quantizing it alone moves its result by no more than
BEARABLE of its length on the calibration data. What does not bear it is mostly the second product
of SwiGLU, whose inputs are products themselves and reach far. Convolutions stay fp16: TensorRT for
RTX has int8 ones with fp16 results for some devices only (docs/adr/0036).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from mmprod.export.constants import fold
from mmprod.export.precision import cast_model
from mmprod.export.quantize import HALF, Quantizer, Ranges, quantizable

BEARABLE = 0.01
"""with 0.02 the step of `small` fails parity on random ids (docs/adr/0036)"""


def mixable(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products of a graph without subgraphs that may be int8, in its order."""
    return [node for node in quantizable(graph) if node.op_type != "Conv"]


def int8_products(errors: Mapping[str, float]) -> frozenset[str]:
    """Names of the products that bear int8. `errors`: relative, by product; NaN: not known."""
    return frozenset(name for name, error in errors.items() if error <= BEARABLE)


def mix_model(model: onnx.ModelProto, ranges: Ranges, chosen: Collection[str]) -> onnx.ModelProto:
    """A copy of an fp32 graph without subgraphs: `chosen` products in int8, the rest as in fp16.

    Raises NumericsError for a weight or an activation that is not finite, or beyond fp16.
    """
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    products = [node for node in mixable(exact.graph) if node.name in chosen]
    fold(exact, [node.input[1] for node in products])
    stored = {tensor.name: tensor for tensor in exact.graph.initializer}
    before = {node.name: (node.input[0], node.input[1]) for node in products}
    out = cast_model(exact, "fp16")
    half = {node.name: node for node in out.graph.node if node.name in before}
    Quantizer(
        out.graph,
        "int8",
        {node.input[0]: ranges[before[name][0]] for name, node in half.items()},
        half,
        {node.input[1]: stored[before[name][1]] for name, node in half.items()},
        HALF,
    ).run()
    return out
