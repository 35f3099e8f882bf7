"""What opens a runner, as functions of a module, so that a worker process can call them by name.

Only light imports stand at the head: a worker is started for every graph, and what a bundle or a
configuration needs is none of its business.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.graphs.spec import GraphSpec

_EXPORT = "pip install 'mmprod[export]'"


def open_onnx(spec: GraphSpec, path: Path, precision: str, provider: str = "") -> Runner:
    """ONNX Runtime on an ONNX file of this precision; imported here, so that a device without it
    can still check its engines. `provider`: a short name of one for the device, "" for the CPU.
    """
    try:
        from mmprod.runners.ort import CPU, GPU_PROVIDERS, OrtRunner
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(f"{error.name} is not installed", hint=_EXPORT) from error
    chosen = GPU_PROVIDERS[provider] if provider else CPU
    return OrtRunner(spec, path, providers=(chosen,), precision=precision)


def open_engine(spec: GraphSpec, path: Path) -> Runner:
    """TensorRT on a plan."""
    from mmprod.runners.trt import TrtRunner

    return TrtRunner(spec, path)


def open_half(spec: GraphSpec, path: Path, *names: str) -> Runner:
    """ONNX Runtime on a graph that shows these half tensors as outputs; see overflow.py."""
    try:
        import mmprod.runners.ort  # noqa: F401 - the one thing that may be missing
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(f"{error.name} is not installed", hint=_EXPORT) from error
    return HalfTensors(spec, path, names)


class HalfTensors:
    """By tensor, int64 (2,): how many places hold Inf or NaN, and how many there are."""

    spec: GraphSpec
    backend = "onnxruntime, nothing optimized"

    def __init__(self, spec: GraphSpec, path: Path, names: tuple[str, ...]) -> None:
        self.spec, self._path, self._names = spec, path, names

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        from mmprod.runners.ort import run_all

        return {
            name: np.array([value.size - np.isfinite(value).sum(), value.size], np.int64)
            for name, value in run_all(self._path, self._names, inputs).items()
        }

    def close(self) -> None:
        return None
