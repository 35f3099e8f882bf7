"""In which types the products of a graph compute, and whether those are what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from mmprod.errors import PrecisionMismatch
from mmprod.export.constants import constant_values
from mmprod.export.precision import (
    CALIBRATED,
    HEAVY,
    MIXED,
    NAMES,
    QUANTIZED,
    check_precision_name,
    is_kept,
)
from mmprod.export.value_types import Types, walk


def precision_of(model: onnx.ModelProto) -> dict[str, int]:
    """How many MatMul, Gemm and Conv compute in each type, subgraphs included; what is dequantized
    counts as the type it was stored in."""
    makers = _makers(model)
    counts = Counter(
        _stored(node.input[0], types, makers)
        for node, types in walk(model.graph)
        if node.op_type in HEAVY
    )
    return dict(sorted(counts.items()))


def assert_precision(model: onnx.ModelProto, precision: str, islands: Sequence[str] = ()) -> None:
    """Every MatMul, Gemm and Conv computes in `precision`, but for those that are kept in fp32;
    in a quantized graph also those of no stored weight (in attention) or of two (constants). In a
    mixed graph matrix products of one stored weight are int8, dequantized to fp16, or fp16, others
    fp16.

    Raises PrecisionMismatch naming the first that does not, ConfigError for an unknown precision.
    """
    check_precision_name(precision)
    makers = _makers(model)
    constants = constant_values(model.graph)
    for node, types in walk(model.graph):
        if node.op_type not in HEAVY:
            continue
        read = node.input[:2] if precision in CALIBRATED else node.input
        found = {_stored(name, types, makers) for name in read if name}
        alone = sum(name in constants for name in read) == 1
        if is_kept(node.name, islands):
            allowed = ["fp32"]
        elif precision == MIXED:
            half = all(types[name] == TensorProto.FLOAT16 for name in read if name)
            may = alone and half and node.op_type != "Conv"
            allowed = ["fp16", "int8"] if may else ["fp16"]
        elif precision in QUANTIZED and not alone:
            allowed = [precision, "fp32"]
        else:
            allowed = [precision]
        if found not in [{one} for one in allowed]:
            raise PrecisionMismatch(
                f"asked for {precision}, but {node.name} of {model.graph.name} computes in "
                f"{'+'.join(sorted(found))}: {precision_of(model)}",
                hint="export the graph again; a file is never accepted for another precision",
            )


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each value; names are unique across subgraphs."""
    return {name: node for node, _ in walk(model.graph) for name in node.output}


def _stored(name: str, types: Types, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The type of a value, or of what it was dequantized from."""
    maker = makers.get(name)
    source = maker.input[0] if maker and maker.op_type == "DequantizeLinear" else name
    # The stored value of a weight lies in the outer graph, which `types` of a subgraph includes.
    return NAMES.get(types[source], "other")
