"""fp32 graph -> the same graph with explicit Q/DQ pairs in int8 or fp8 (E4M3).

    activation -> QuantizeLinear -> DequantizeLinear --\\
    stored weight (int8 or fp8) -> DequantizeLinear ----> MatMul, Gemm or Conv -> fp32

Only products with a stored weight change: activations symmetric with one scale per tensor, weights
with one per output channel. All else stays fp32: norms, softmax, the products inside attention, the
codebook search and sampling. Zero points are 0 and biases fp32, because TensorRT takes no others.
The scales of activations come from `calibrate.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from mmprod.errors import NumericsError
from mmprod.export.constants import constant_values, fold
from mmprod.export.precision import HEAVY, is_kept, scope_of
from mmprod.graphs.runner import Array

Ranges = Mapping[str, float]
"""value of a graph -> the largest absolute number it reached while calibrating"""

_LARGEST = {"int8": 127.0, "fp8": 448.0}
_DTYPES: dict[str, np.dtype[Any]] = {
    "int8": np.dtype(np.int8),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
_TINY = 1e-12
"""the range that a value which was always 0 is given; a scale must be positive"""
_SMALLEST = {np.dtype(np.float32): 0.0, np.dtype(np.float16): 2.0**-14}
"""scales below lose digits"""


@dataclass(frozen=True)
class Scales:
    """`kind`: type of scales and of what is dequantized. `grid`: numbers of this type only."""

    kind: np.dtype[Any]
    grid: np.dtype[Any]


FULL = Scales(np.dtype(np.float32), np.dtype(np.float32))
HALF = Scales(np.dtype(np.float16), np.dtype(np.float16))
HALF_IN_FULL = Scales(np.dtype(np.float32), np.dtype(np.float16))
"""the numbers of half scales, computed with in fp32"""


def quantizable(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products of a graph without subgraphs that can be quantized, in its order: those of a
    computed value with a weight, or with what is made of weights alone.
    """
    constants = constant_values(graph)
    return [
        node
        for node in graph.node
        if node.op_type in HEAVY
        and not is_kept(scope_of(node))
        and node.input[1] in constants
        and node.input[0] not in constants
    ]


def quantize_model(model: onnx.ModelProto, precision: str, ranges: Ranges) -> onnx.ModelProto:
    """A copy of an fp32 graph without subgraphs, its products quantized to int8 or fp8.

    Raises NumericsError for a weight or an activation that is not finite.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    fold(out, [node.input[1] for node in quantizable(out.graph)])
    Quantizer(out.graph, precision, ranges).run()
    return out


class Quantizer:
    """Rewrites one graph in place. `ranges` of the values that its products read.

    `chosen`: names of the products to quantize, all that can be if None. `weights`: fp32 tensors in
    place of weights of the graph, by name there.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        precision: str,
        ranges: Ranges,
        chosen: Collection[str] | None = None,
        weights: Mapping[str, onnx.TensorProto] | None = None,
        scales: Scales = FULL,
    ) -> None:
        self._graph, self._precision, self._ranges = graph, precision, ranges
        self._chosen, self._scales = chosen, scales
        self._weights = {tensor.name: tensor for tensor in graph.initializer} | dict(weights or {})
        self._made: dict[str, onnx.TensorProto] = {}
        self._before: list[onnx.NodeProto] = []
        self._dequantized: dict[str, str] = {}

    def run(self) -> None:
        order: list[onnx.NodeProto] = []
        names = {node.name for node in quantizable(self._graph)}
        if self._chosen is not None:
            names &= set(self._chosen)
        for node in self._graph.node:
            if node.name in names:
                self._before = []
                node.input[0] = self._activation(node.input[0])
                node.input[1] = self._weight(node, node.input[1])
                order.extend(self._before)
            order.append(node)
        del self._graph.node[:]
        self._graph.node.extend(order)
        used = {name for node in order for name in node.input}
        used.update(value.name for value in self._graph.output)
        kept = [t for t in (*self._graph.initializer, *self._made.values()) if t.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _activation(self, name: str) -> str:
        """The value behind a Q/DQ pair, which all that read it share."""
        if name in self._dequantized:
            return self._dequantized[name]
        largest = self._ranges[name]
        if not np.isfinite(largest):
            raise NumericsError(
                f"{name} reached {largest} while calibrating {self._precision}",
                hint="export with --precision fp32 and look with mmprod parity run",
            )
        scale = self._fitting(np.asarray(max(largest, _TINY) / _LARGEST[self._precision]))
        parts = [name, self._constant(f"{name}_scale", scale), self._zero(f"{name}_zero", ())]
        stored, result = f"{name}_{self._precision}", f"{name}_dequantized"
        self._add("QuantizeLinear", parts, stored)
        self._add("DequantizeLinear", [stored, *parts[1:]], result)
        self._dequantized[name] = result
        return result

    def _weight(self, node: onnx.NodeProto, name: str) -> str:
        """The stored weight behind a DQ, with one scale per output channel."""
        values = numpy_helper.to_array(self._weights[name])
        axis = _channel_axis(node, values.ndim)
        stem = f"{name}_axis{axis}"
        if stem in self._dequantized:
            return self._dequantized[stem]
        scales = self._fitting(channel_scales(values, axis, self._precision, name))
        stored = numpy_helper.from_array(
            quantized(values, scales.astype(np.float32), axis, self._precision),
            f"{stem}_{self._precision}",
        )
        self._made[stored.name] = stored
        scale = self._constant(f"{stem}_scale", scales)
        zero = self._zero(f"{stem}_zero", scales.shape)
        result = f"{stem}_dequantized"
        self._add("DequantizeLinear", [stored.name, scale, zero], result, axis=axis)
        self._dequantized[stem] = result
        return result

    def _fitting(self, scales: Array) -> Array:
        """Scales in the type of the graph. Raises NumericsError for one beyond it."""
        grid, kind = self._scales.grid, self._scales.kind
        if scales.max(initial=0) > np.finfo(grid).max:
            raise NumericsError(
                f"a scale of {scales.max():g} is beyond {grid.name}",
                hint="export with --precision int8, or look with mmprod parity run",
            )
        fitting: Array = np.maximum(scales, _SMALLEST[grid]).astype(grid).astype(kind)
        return fitting

    def _constant(self, name: str, values: Array) -> str:
        self._made[name] = numpy_helper.from_array(values, name)
        return name

    def _zero(self, name: str, shape: tuple[int, ...]) -> str:
        zeros = np.zeros(shape, _DTYPES[self._precision])
        self._made[name] = numpy_helper.from_array(zeros, name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        node = onnx.helper.make_node(kind, inputs, [output], f"{kind}/{output}")
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self._before.append(node)


def channel_scales(values: Array, axis: int, precision: str, name: str) -> Array:
    """One positive float32 scale per channel. Raises NumericsError for a weight not finite."""
    others = tuple(k for k in range(values.ndim) if k != axis)
    largest = np.abs(values).max(axis=others)
    if not np.isfinite(largest).all():
        raise NumericsError(
            f"the weight {name} is not finite", hint="train again from an earlier checkpoint"
        )
    scales: Array = (np.maximum(largest, _TINY) / _LARGEST[precision]).astype(np.float32)
    return scales


def quantized(values: Array, scales: Array, axis: int, precision: str) -> Array:
    """The stored numbers of a weight: round half to even, saturate."""
    shape = [-1 if k == axis else 1 for k in range(values.ndim)]
    scaled = values / scales.reshape(shape)
    limit = _LARGEST[precision]
    if precision == "int8":
        scaled = np.rint(scaled)
    stored: Array = np.clip(scaled, -limit, limit).astype(_DTYPES[precision])
    return stored


def _channel_axis(node: onnx.NodeProto, dims: int) -> int:
    """The axis of a weight that its output channels lie along."""
    if node.op_type == "Conv":
        return 0
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if turned else dims - 1
