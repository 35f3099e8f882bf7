"""One ONNX graph -> one TensorRT engine. The only file of `engines` that speaks to the library.

`tensorrt_rtx` builds for named targets without a device; `tensorrt` has the same interface, builds
for the device it runs on, and takes the same path here. Networks are strongly typed: the precision
is that of the graph, no flag changes it. The library reports failure as `None` and log lines; both
become errors of mmprod here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmprod.engines.job import OPTIONS, BuildJob, BuildResult, Port
from mmprod.engines.layers import Kernel, keep, parse_inspector, parse_log, parse_memory, summarize
from mmprod.engines.precision_check import check_engine, check_graph
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, MmprodError
from mmprod.runners.trt import load_library, record_log, release_frames

_TYPES = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32"}
_DATATYPES = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16", "INT8": "Int8", "FP8": "FP8"}
_HEAVY = {"MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_OUTPUT"}
_FOLDED = {"CAST", "ELEMENTWISE", "IDENTITY", "SHUFFLE", "SLICE", "UNARY", "GATHER"}
"""Types whose outputs are constants when their inputs are."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NOISE = re.compile(
    r"^I\w+::\w+: Error Code \d+: (Myelin \()?|\[\w+\.(cpp|h):\d+: \w+\] | In \w+ at \S+$"
)
_WARNINGS = 20


def build(job: BuildJob) -> BuildResult:
    """Build `job` and write its plan. `job.plan` is written only when the engine is right.

    Raises ConfigError when the graph cannot be read or built for the target, IntegrityError when it
    was changed or is not the graph of its specification, PrecisionMismatch, EnvironmentMissing for
    the library.
    """
    try:
        return _build(job)
    except BaseException as error:
        release_frames(error)
        raise


def _build(job: BuildJob) -> BuildResult:
    library = load_library(job.flavour)
    log = record_log(library, keep)
    builder = _require(library.Builder(log), log, job)
    network = _require(builder.create_network(0), log, job)
    parser = library.OnnxParser(network, log)
    job.verify()
    if not parser.parse_from_file(job.onnx):
        raise _parse_error(job, parser, log)
    _check_ports(job, "inputs", job.inputs, network.num_inputs, network.get_input)
    _check_ports(job, "outputs", job.outputs, network.num_outputs, network.get_output)
    operators = _heavy_operators(library, network, decompose=job.precision == "fp32")
    check_graph(job.precision, operators, job.label)
    config = _configure(library, builder, job)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    if plan is None:
        raise _build_error(job, log)
    kernels = parse_log(log.kept) or _inspect(library, log, plan, job)
    tf32 = config.get_flag(library.BuilderFlag.TF32)
    report = check_engine(
        job.precision,
        operators,
        kernels,
        tf32=tf32,
        label=job.label,
        constant=operators.keys() & _constant_nodes(network),
    )
    Path(job.plan).write_bytes(memoryview(plan))
    return BuildResult(
        version=library.__version__,
        seconds=round(seconds, 3),
        layers=summarize(kernels),
        precision=report.as_dict(),
        memory=parse_memory(log.kept),
        warnings=tuple(dict.fromkeys(log.warnings))[:_WARNINGS],
    )


def _require(value: Any, log: Any, job: BuildJob) -> Any:
    """`value`, or EnvironmentMissing when the library could not make it."""
    if value is None:
        raise EnvironmentMissing(
            f"{job.label}: {job.flavour} cannot start: {_reason(log)}", hint="mmprod doctor"
        )
    return value


def _configure(library: Any, builder: Any, job: BuildJob) -> Any:
    """The builder's configuration: target, no TF32, detailed layer information, shape ranges."""
    config = builder.create_builder_config()
    if job.flavour == "rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, job.target.upper()), 0)
    if not OPTIONS["tf32"]:
        config.clear_flag(library.BuilderFlag.TF32)
    detail = getattr(library.ProfilingVerbosity, OPTIONS["profiling_verbosity"])
    config.profiling_verbosity = detail
    profile = builder.create_optimization_profile()
    for port in job.inputs:
        profile.set_shape(port.name, *port.profile)
    config.add_optimization_profile(profile)
    return config


def _heavy_operators(library: Any, network: Any, *, decompose: bool) -> dict[str, str]:
    """Datatype of each matrix product, convolution and attention of the network, by ONNX node.

    `decompose`: let attention be built from its parts; there is no fused fp32 attention.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    found: dict[str, str] = {}
    for layer in layers:
        if layer.type.name not in _HEAVY:
            continue
        if layer.type.name == "ATTENTION_OUTPUT" and decompose:
            layer.__class__ = library.IAttentionOutputLayer
            layer.attention.decomposable = True
        nodes = _NODE.findall(layer.metadata) or [layer.name]
        kind = _stored_type(layer.get_input(0), makers)
        found[nodes[0]] = _DATATYPES.get(kind, kind)
    return found


def _constant_nodes(network: Any) -> set[str]:
    """ONNX nodes of which every layer reads constants alone: the library folds them away."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    constant: set[str] = set()  # tensors
    varying: set[str] = set()  # nodes
    nodes: set[str] = set()
    for layer in layers:
        inputs = [layer.get_input(k) for k in range(layer.num_inputs)]
        named = _NODE.findall(layer.metadata) or [layer.name]
        nodes.update(named)
        fixed = layer.type.name in ("CONSTANT", *_HEAVY, *_FOLDED)
        if fixed and all(tensor.name in constant for tensor in inputs if tensor is not None):
            constant.update(layer.get_output(k).name for k in range(layer.num_outputs))
        else:
            varying.update(named)
    return nodes - varying


def _stored_type(tensor: Any, makers: dict[str, Any]) -> str:
    """The type of a tensor, or of what it was dequantized from."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in ("SHUFFLE", "IDENTITY"):
        layer = makers.get(layer.get_input(0).name)
    if layer is not None and layer.type.name == "DEQUANTIZE":
        return str(layer.get_input(0).dtype.name)
    return str(tensor.dtype.name)


def _check_ports(
    job: BuildJob, kind: str, wanted: Sequence[Port], count: int, get: Callable[[int], Any]
) -> None:
    """The network's inputs or outputs are those of the specification, or IntegrityError."""
    tensors = [get(index) for index in range(count)]
    found = {t.name: (_TYPES.get(t.dtype.name, t.dtype.name), tuple(t.shape)) for t in tensors}
    asked = {port.name: (port.dtype, port.shape) for port in wanted}
    if found != asked:
        raise IntegrityError(
            f"{job.onnx} is not the graph {job.graph}: its {kind} are {found}, not {asked}",
            hint="export the run again with this version of mmprod",
        )


def _inspect(library: Any, log: Any, plan: Any, job: BuildJob) -> list[Kernel]:
    """Kernels of a plan by the engine inspector, where there is a device to open it on."""
    if job.flavour == "rtx":
        return []
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise EnvironmentMissing(f"{job.label}: the finished plan cannot be opened: {_reason(log)}")
    inspector = engine.create_engine_inspector()
    return parse_inspector(inspector.get_engine_information(library.LayerInformationFormat.JSON))


def _parse_error(job: BuildJob, parser: Any, log: Any) -> MmprodError:
    """What the parser found wrong, with the names of the nodes."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    parts = []
    for error in errors:
        code = error.code().name.lower().replace("_", " ")
        about = _clean(error.desc().splitlines())
        detail = f": {about}" if about not in ("", "true", "false") else ""
        where = f"node {error.node_name()!r} ({error.node_operator()})"
        parts.append(f"{where}: {code}{detail}" if error.node_operator() else f"{code}{detail}")
    return ConfigError(
        f"{job.label}: TensorRT cannot read {Path(job.onnx).name}: "
        f"{'; '.join(parts) or _reason(log)}",
        hint="an engine needs a graph without these operators; mmprod export writes such graphs",
    )


def _build_error(job: BuildJob, log: Any) -> MmprodError:
    """Why there is no engine: this graph for this target, or this machine."""
    reason = _reason(log)
    if re.search(r"cuda|out of memory|bad_alloc", reason, re.IGNORECASE):
        return EnvironmentMissing(f"{job.label}: not built: {reason}", hint="mmprod doctor")
    return ConfigError(
        f"{job.label}: TensorRT cannot build this graph for {job.target}: {reason}",
        hint="ask for another precision or target, or leave out this one",
    )


def _reason(log: Any) -> str:
    """What the library logged as errors."""
    return _clean(log.errors) or "it gave no reason"


def _clean(lines: Sequence[str]) -> str:
    """Lines of the library in one, without source positions, repetitions and what follows from
    there being no device, which a builder for RTX mentions whenever it refuses something."""
    cleaned = [_NOISE.sub("", line.strip()).strip() for line in lines]
    told = [line for line in cleaned if line and "catchCudaError" not in line]
    return " | ".join(dict.fromkeys(told))
