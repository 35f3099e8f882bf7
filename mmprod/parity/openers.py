"""What opens a runner, as functions of a module, so that a worker process can call them by name.

Only light imports stand at the head: a worker is started for every graph, and what a bundle or a
configuration needs is none of its business.
"""

from __future__ import annotations

from pathlib import Path

from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Runner
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
