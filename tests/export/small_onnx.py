"""ONNX graphs written by hand, for tests of the caster and the linker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmprod.export.onnx_export import SCOPE
from mmprod.graphs.runner import Array

Ports = Mapping[str, tuple[int, Sequence[int | str]]]
"""name -> (type, shape)"""
ROW: tuple[int, Sequence[int | str]] = (TensorProto.FLOAT, ["batch", 8])


def node(
    kind: str, inputs: str, output: str, scope: str = "", **attributes: object
) -> onnx.NodeProto:
    """A node named `scope/output`, with the note of its scope that the exporter leaves."""
    made = helper.make_node(kind, inputs.split(), [output], f"{scope}/{output}", **attributes)
    note = made.metadata_props.add()
    note.key, note.value = SCOPE, scope
    return made


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, object],
    inputs: Ports | None = None,
    outputs: Ports | None = None,
) -> onnx.ModelProto:
    """A model of opset 20; by default x (batch, 8) -> y (batch, 8), float32."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, k, s) for n, (k, s) in (inputs or {"x": ROW}).items()],
        [helper.make_tensor_value_info(n, k, s) for n, (k, s) in (outputs or {"y": ROW}).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def matrix(seed: int, scale: float = 0.3) -> Array:
    """A random (8, 8) float32 matrix."""
    return (np.random.default_rng(seed).standard_normal((8, 8)) * scale).astype(np.float32)
