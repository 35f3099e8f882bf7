"""Runs a graph with ONNX Runtime. The only file that imports onnxruntime; its errors end here.

ONNX Runtime lists providers it cannot load and falls back to the CPU without an error, so the
providers of the finished session are read back and compared with what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.checks import check_inputs, check_outputs

CPU = "CPUExecutionProvider"
GPU_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}
"""Other ways to run a graph on a device, by a short name. Not run here: no CUDA device."""
_ON_CPU = {
    "fp16": "weights in fp16, arithmetic in fp32 on this CPU",
    "bf16": "bf16 emulated on this CPU: fp32 arithmetic, each result rounded",
    "mixed": "Q/DQ to int8 as written, arithmetic in fp32 on this CPU",
    "fp8": "Q/DQ to fp8 as written, arithmetic in fp32 on this CPU",
}
"""What the processor does instead of computing in a precision."""
_TYPES = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_ERRORS = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.ModelRequiresCompilation,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)


def gpu_providers() -> list[str]:
    """Short names of the device providers that this ONNX Runtime was built with."""
    built = ort.get_available_providers()
    return [name for name, provider in GPU_PROVIDERS.items() if provider in built]


class OrtRunner:
    """One graph in an ONNX Runtime session.

    `threads`: threads inside an operator, 0 for as many as ONNX Runtime likes. `providers`: in
    order of preference; each must be in the finished session. `precision`: of the graph, so that
    `backend` can say where the arithmetic is another. Raises IntegrityError for a file that is
    missing, no ONNX graph or not the graph of `spec`; EnvironmentMissing for a provider.
    """

    spec: GraphSpec
    backend: str

    def __init__(
        self,
        spec: GraphSpec,
        path: Path,
        threads: int = 0,
        providers: Sequence[str] = (CPU,),
        precision: str = "fp32",
    ) -> None:
        self.spec = spec
        self.path = path
        self._session: ort.InferenceSession | None = _open(path, threads, providers, precision)
        self.backend = f"onnxruntime {ort.__version__} {'+'.join(self._session.get_providers())}"
        if precision in _ON_CPU and self._session.get_providers() == [CPU]:
            self.backend += f" ({_ON_CPU[precision]})"
        _check_interface(spec, path, self._session)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`."""
        if self._session is None:
            raise ValueError(f"the runner of {self.path} is closed")
        sizes = check_inputs(self.spec, inputs)
        try:
            outputs = self._session.run([t.name for t in self.spec.outputs], dict(inputs))
        except _ERRORS as error:
            raise IntegrityError(
                f"{self.path} failed in ONNX Runtime: {_first_line(error)}",
                hint="export the run again; `mmprod doctor` shows the version of ONNX Runtime",
            ) from error
        return check_outputs(self.spec, outputs, sizes)

    def close(self) -> None:
        self._session = None


class FeatureGraph:
    """A feature extractor from elsewhere: one graph with one input of pictures and, first among its
    outputs, features.

    The input is uint8 (B, H, W, 3), or float32 (B, 3, H, W) for values in [0, 1]; whatever else the
    network wants of its pictures is part of its graph. `side`: pixels per side, None if any will
    do. Raises IntegrityError for a file that is no ONNX graph, ConfigError for another input.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = _open(path, 0, (CPU,))
        inputs = self._session.get_inputs()
        fits = len(inputs) == 1 and len(inputs[0].shape) == 4
        first = inputs[0] if fits else None
        kind = _TYPES.get(first.type, first.type) if first else ""
        places = {"uint8": (3, 1, 2), "float32": (1, 2, 3)}.get(kind)
        if first is None or places is None or first.shape[places[0]] != 3:
            raise ConfigError(
                f"{path} takes {[(v.name, v.type, v.shape) for v in inputs]}",
                hint="a feature extractor takes uint8 (B, H, W, 3) or float32 (B, 3, H, W)",
            )
        sides = [first.shape[place] for place in places[1:]]
        self._name, self.kind = first.name, kind
        self.side = int(sides[0]) if isinstance(sides[0], int) and sides[0] == sides[1] else None
        self.batch = first.shape[0] if isinstance(first.shape[0], int) else None

    def __call__(self, pictures: Array) -> Array:
        """pictures (B, S, S, 3) uint8 -> the first output as it is, (B, ...)."""
        values = pictures
        if self.kind == "float32":
            values = (pictures.transpose(0, 3, 1, 2) / 255).astype("float32")
        try:
            found: Array = self._session.run(None, {self._name: values})[0]
        except _ERRORS as error:
            raise IntegrityError(
                f"{self.path} failed in ONNX Runtime: {_first_line(error)}",
                hint="does it take pictures of this size? see --features",
            ) from error
        return found


class PartRunner:
    """A graph without a specification, such as a part of a graph: all outputs by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = _open(path, 0, (CPU,))
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except _ERRORS as error:
            raise IntegrityError(
                f"{self.path.name} failed in ONNX Runtime: {_first_line(error)}",
                hint="mmprod doctor shows the version of ONNX Runtime",
            ) from error
        return dict(zip(self._outputs, found, strict=True))


def run_all(
    graph: Path | bytes, names: Sequence[str], inputs: Arrays, folder: Path | None = None
) -> dict[str, Array]:
    """These outputs of a graph without a specification, e.g. one that shows its inner tensors.

    `folder`: of the weights beside a graph that is given as bytes. Nothing is optimized. Raises
    IntegrityError when the graph cannot be loaded or run.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    try:
        session = ort.InferenceSession(graph, options, providers=[CPU])
        return dict(zip(names, session.run(list(names), dict(inputs)), strict=True))
    except _ERRORS as error:
        name = graph.name if isinstance(graph, Path) else "the graph with all its tensors shown"
        raise IntegrityError(
            f"{name} failed in ONNX Runtime: {_first_line(error)}",
            hint="mmprod doctor shows the version of ONNX Runtime",
        ) from error


def _open(
    path: Path, threads: int, providers: Sequence[str], precision: str = "fp32"
) -> ort.InferenceSession:
    """A session on exactly these providers."""
    missing = [p for p in providers if p not in ort.get_available_providers()]
    if missing:
        raise EnvironmentMissing(
            f"this ONNX Runtime has no {missing[0]}", hint="a GPU needs onnxruntime-gpu instead"
        )
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="mmprod export RUN writes the graphs")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source: Path | bytes = path
    if tuple(providers) == (CPU,) and precision in ("bf16", "fp8"):
        # Its optimizer drops pairs of casts and makes invalid graphs of Q/DQ pairs in fp8.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if precision == "bf16":
            source = _emulated(path)
    try:
        session = ort.InferenceSession(source, options, providers=list(providers))
    except _ERRORS as error:
        raise IntegrityError(
            f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}",
            hint="mmprod bundle verify BUNDLE tells whether the file was changed",
        ) from error
    found = session.get_providers()
    if found[: len(providers)] != list(providers):
        raise EnvironmentMissing(
            f"asked for {list(providers)}, ONNX Runtime fell back to {found}",
            hint="mmprod doctor shows what this machine can run",
        )
    return session


def _emulated(path: Path) -> bytes:
    """See `runners.bf16`. EnvironmentMissing when the graph is too large for it."""
    from mmprod.runners.bf16 import emulated

    try:
        return emulated(path)
    except ValueError as error:
        raise EnvironmentMissing(
            f"{path.name} cannot be emulated in bf16: {_first_line(error)}",
            hint="this CPU has no bf16 kernels; compare fp32 or fp16, or run the engine",
        ) from error


def _check_interface(spec: GraphSpec, path: Path, session: ort.InferenceSession) -> None:
    """The names, types and order of inputs and outputs are those of `spec`, or IntegrityError."""
    for kind, wanted, found in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        asked = [(t.name, t.dtype) for t in wanted]
        has = [(value.name, _TYPES.get(value.type, value.type)) for value in found]
        if asked != has:
            raise IntegrityError(
                f"{path} is not the graph {spec.name}: it has the {kind} {has}, not {asked}",
                hint="mmprod bundle verify BUNDLE; was the bundle made by this version?",
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
