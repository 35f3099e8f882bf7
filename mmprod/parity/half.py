"""A graph that shows every half tensor inside it, for overflow.py.

Opened like any other runner, so that a foreign graph is parsed in the worker and not before: types
are inferred and outputs added there, in memory, as a worker may write no large files. Weights
beside the graph stay where they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.graphs.spec import GraphSpec


def open_half(spec: GraphSpec, path: Path) -> Runner:
    """ONNX Runtime on the graph. Raises EnvironmentMissing without onnx or onnxruntime."""
    try:
        import onnx

        import mmprod.runners.ort  # noqa: F401 - it runs the graph
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed", hint="pip install 'mmprod[export]'"
        ) from error
    return HalfTensors(spec, path, onnx)


class HalfTensors:
    """By the node that computes a half tensor, int64 (2,): how many places hold Inf or NaN, and how
    many there are.
    """

    spec: GraphSpec
    backend = "onnxruntime, nothing optimized"

    def __init__(self, spec: GraphSpec, path: Path, onnx: Any) -> None:
        self.spec, self._folder = spec, path.parent
        model = onnx.load(path, load_external_data=False)  # inference takes 2 GB at most
        self._makers = _show_half(onnx, model, onnx.shape_inference.infer_shapes(model).graph)
        self._model = model.SerializeToString()

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        if not self._makers:
            return {}
        from mmprod.runners.ort import run_all

        found = run_all(self._model, list(self._makers.values()), inputs, self._folder)
        return {
            maker: np.array([value.size - np.isfinite(value).sum(), value.size], np.int64)
            for maker, value in zip(self._makers, found.values(), strict=True)
        }

    def close(self) -> None:
        return None


def _show_half(onnx: Any, model: Any, known: Any) -> dict[str, str]:
    """Make every half tensor that a node computes an output; its name by the node that makes it.

    `known`: the graph with inferred types.
    """
    half = {
        value.name: value
        for value in known.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    makers: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.output if node.op_type != "Constant" else ():
            if name in half:
                maker = f"{node.name or name} ({node.op_type})"
                makers[f"{maker}: {name}" if maker in makers else maker] = name
                model.graph.output.append(half[name])
    return makers
