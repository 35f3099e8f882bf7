"""A Triton model repository: every graph as the model `graph.NAME`, as the graph table has it.

Three backends. `python` runs anywhere through ONNX Runtime and a small file of ours that checks the
graph's hash; `onnxruntime` and `tensorrt` are Triton's own, the latter for plans of regular
TensorRT. People-friendly models stand beside them, see `triton_friendly`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from mmprod.deploying.facts import EngineFile, Facts, GraphFile
from mmprod.deploying.files import Copy, Files
from mmprod.deploying.gpus import NONE
from mmprod.deploying.options import Options
from mmprod.deploying.triton_config import TYPES, to_text
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

PREFIX = "graph."
"""Of models that are graphs; `mmprod serve` uses the same names."""
DELAY_US = 2000
"""How long a request may wait for others to join its batch."""
QUEUE = 64
WEIGHTS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
RESOURCES = resources.files("mmprod.deploying") / "triton_models"


def render_graphs(facts: Facts, options: Options) -> tuple[Files, set[str]]:
    """The models of the graphs, as files below `triton/`, and which graphs these are."""
    serving = options.serving
    if serving.backend == "tensorrt":
        found = {e.graph: e for e in engines_of(facts, options)}
        models = {name: _engine(facts, engine, options) for name, engine in found.items()}
    else:
        held = facts.of_precision(serving.precision)
        models = {graph.graph: _graph(facts, graph, options) for graph in held}
    return {name: content for model in models.values() for name, content in model.items()}, set(
        models
    )


def engines_of(facts: Facts, options: Options) -> list[EngineFile]:
    """The regular TensorRT's engines in the precision that is served, for the GPU that is named."""
    from mmprod.deploying.gpus import GPUS, folded

    target = GPUS.get(folded(options.serving.gpu), "")
    return [
        engine
        for engine in facts.engines
        if engine.flavour == "tensorrt"
        and engine.precision == options.serving.precision
        and engine.target == target
    ]


def largest_batch(spec: GraphSpec, options: Options) -> int:
    """What a request may hold, and a batch of several: of the graph, or less if asked."""
    most = spec.dims[0].max
    return min(options.serving.max_batch or most, most)


def _graph(facts: Facts, graph: GraphFile, options: Options) -> Files:
    """A model of Triton's python or onnxruntime backend."""
    serving, spec = options.serving, facts.specs[graph.graph]
    folder = f"triton/{PREFIX}{graph.graph}"
    files: Files = {}
    hashes = {}
    for path, digest in graph.files.items():
        # The graph names the files of its weights; Triton names the graph's own.
        name = "model.onnx" if path == graph.main else path.rpartition("/")[2]
        files[f"{folder}/1/{name}"] = Copy(path)
        hashes[f"sha256:{name}"] = digest
    content = _common(facts, spec, options) | {"instance_group": [_instances(options)]}
    parameters = {"precision": graph.precision, **hashes}
    if serving.backend == "python":
        files[f"{folder}/1/model.py"] = (RESOURCES / "graph.py").read_text(encoding="utf-8")
        content |= {"backend": "python"}
        parameters |= {"threads": "0"}
    else:
        content |= {"platform": WEIGHTS["onnxruntime"]}
    return with_config(folder, facts, content, parameters) | files


def _engine(facts: Facts, engine: EngineFile, options: Options) -> Files:
    """A model of Triton's tensorrt backend. Not run here: no CUDA device."""
    folder = f"triton/{PREFIX}{engine.graph}"
    content = _common(facts, facts.specs[engine.graph], options) | {
        "platform": WEIGHTS["tensorrt"],
        "instance_group": [_instances(options)],
    }
    parameters = {
        "precision": engine.precision,
        "tensorrt": engine.version,
        "target": engine.target,
        "sha256:model.plan": engine.sha256,
    }
    config = with_config(folder, facts, content, parameters)
    return config | {f"{folder}/1/model.plan": Copy(engine.path)}


def with_config(
    folder: str, facts: Facts, content: Mapping[str, Any], parameters: Mapping[str, str]
) -> Files:
    """`config.pbtxt` with these parameters and those that every model has."""
    every = {**parameters, "bundle": facts.digest}
    whole = {
        "name": folder.rpartition("/")[2],
        **content,
        "parameters": {key: {"string_value": value} for key, value in sorted(every.items())},
    }
    return {f"{folder}/config.pbtxt": to_text(whole)}


def _common(facts: Facts, spec: GraphSpec, options: Options) -> dict[str, Any]:
    """Fields that do not depend on the backend."""
    dim, largest = spec.dims[0], largest_batch(spec, options)
    return {
        "max_batch_size": largest,
        "input": [port(tensor) for tensor in spec.inputs],
        "output": [port(tensor) for tensor in spec.outputs],
        "version_policy": {"specific": {"versions": [1]}},
        "dynamic_batching": {
            "preferred_batch_size": [min(dim.typical, largest)],
            "max_queue_delay_microseconds": DELAY_US,
            "default_queue_policy": {"max_queue_size": QUEUE, "timeout_action": "REJECT"},
        },
        "model_warmup": [
            {
                "name": "one sample",
                "batch_size": dim.min,
                "inputs": {tensor.name: _warm(tensor) for tensor in spec.inputs},
            }
        ],
    }


def port(tensor: Tensor) -> dict[str, Any]:
    """An input or output as Triton has it: without the batch, which comes first."""
    return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": _sizes(tensor)}


def _sizes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape[1:] if not isinstance(size, Dim)]


def _warm(tensor: Tensor) -> dict[str, Any]:
    """Zeros for a warm-up request: valid as an id and as noise. Triton's random floats are of any
    size, and samplers need noise in [0, 1).
    """
    return {"data_type": TYPES[tensor.dtype], "dims": _sizes(tensor), "zero_data": True}


def _instances(options: Options) -> dict[str, Any]:
    gpu = options.serving.gpu != NONE
    return {"kind": "KIND_GPU" if gpu else "KIND_CPU", "count": 1}
