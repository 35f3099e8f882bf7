"""A small signed bundle with real ONNX graphs, weights outside one of them, made once and copied.

The folder of the tests has no package, so what they share are fixtures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle, create_bundle, open_bundle
from mmprod.bundle.keys import generate
from mmprod.bundle.signing import sign
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.manifest import sha256_bytes

DIMS = Dims(image_size=16, grid=4, codebook_size=32, text_length=6, vocabulary=50, embedding=8)
FILES = {
    "engines/rtx-sm86/codec_encode.fp32.plan": ("engine", "codec_encode", "fp32"),
    "reference/codec_encode.npz": ("reference", "codec_encode", ""),
    "reports/parity.json": ("report", "", ""),
    "tokenizer.json": ("tokenizer", "", ""),
    "config.toml": ("config", "", ""),
}
PROVENANCE = {
    "run": "r",
    "data": "d" * 64,
    "stages": {"codec": {"steps": 9, "best_step": 8, "metrics": {"psnr": 20.5}}},
    "files": [{"path": "weights.safetensors", "sha256": "0" * 64, "bytes": 1}],
}
WEIGHTS = 64
ENGINE = {
    "graph": "codec_encode", "precision": "fp32", "flavour": "rtx", "version": "1.7",
    "target": "sm86", "path": "engines/rtx-sm86/codec_encode.fp32.plan",
    "bytes": 7, "seconds": 2.5, "kernels": 5,
    "fused_attention": 0, "state": "built, not run",
}  # fmt: skip
TIMING = {
    "subject": "onnxruntime", "graph": "codec_encode", "precision": "fp32", "target": "",
    "batch": 1, "p50_ms": 1.5, "samples_per_s": 650.0, "peak_bytes": 5_000_000,
}  # fmt: skip


def external_graph(
    location: str = "weights.data", *, offset: str = "0", length: str = "256"
) -> bytes:
    """A graph that adds weights which lie in the file `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[WEIGHTS])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return graph_of(tensor)


def graph_of(tensor: TensorProto) -> bytes:
    """A graph y = x + tensor."""
    shape = list(tensor.dims)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [tensor],
    )
    model: bytes = helper.make_model(graph).SerializeToString()
    return model


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    private = tmp_path_factory.mktemp("keys") / "maker"
    return private, generate(private).path


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    root = tmp_path_factory.mktemp("template") / "b"
    made = create_bundle(root, name="t", dims=DIMS, sampler=SamplerConfig(), provenance=PROVENANCE)
    inside = numpy_helper.from_array(np.arange(WEIGHTS, dtype=np.float32), "w")
    contents = {name: f"{name}\n".encode() * 20 for name in FILES} | {
        "onnx/codec_encode.fp32.onnx": graph_of(inside),
        "onnx/codec_decode.fp32.onnx": external_graph(),
        "onnx/weights.data": np.arange(WEIGHTS, dtype=np.float32).tobytes(),
    }
    digests = {name: sha256_bytes(content) for name, content in contents.items()}
    origin = {
        "path": "onnx/codec_encode.fp32.onnx",
        "sha256": digests["onnx/codec_encode.fp32.onnx"],
    }
    contents["engines/rtx-sm86/codec_encode.fp32.json"] = json.dumps({"onnx": [origin]}).encode()
    about = FILES | {
        "engines/rtx-sm86/codec_encode.fp32.json": ("engine-info", "codec_encode", "fp32"),
        "onnx/codec_encode.fp32.onnx": ("onnx", "codec_encode", "fp32"),
        "onnx/codec_decode.fp32.onnx": ("onnx", "codec_decode", "fp32"),
        "onnx/weights.data": ("onnx-data", "codec_decode", "fp32"),
    }
    for name, (role, graph, precision) in about.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])
        made.add(path, role=role, graph=graph, precision=precision, meta={"n": 1})
    digest = {origin["path"]: origin["sha256"]}
    row = {"leg": "torch-ort", "graph": "codec_encode", "precision": "fp32", "target": ""}
    rows = [{**row, "status": "pass", "reason": "", "sha256": digest}]
    made.put_summary("parity", {"ok": True, "pass": 1, "fail": 0, "not run": 0, "rows": rows})
    made.put_summary("engines", [{**ENGINE, "sha256": digests[ENGINE["path"]]}])
    machine = {"processor": "a processor", "cores": 2, "versions": {"onnxruntime": "1.2"}}
    timings = {"machine": machine, "settings": {"runs": 9}, "rows": [{**TIMING, "sha256": digest}]}
    made.put_summary("bench", timings)
    made.save()
    sign(made, keys[0])
    return root


@pytest.fixture
def fresh(_template: Path, tmp_path: Path) -> Callable[[], Path]:
    """Gives a new copy of the signed bundle's folder each time."""
    number = iter(range(1_000_000))

    def copy() -> Path:
        root = tmp_path / f"copy{next(number)}"
        shutil.copytree(_template, root)
        return root

    return copy


@pytest.fixture
def signed(fresh: Callable[[], Path]) -> Bundle:
    """The bundle, signed by `keys` and opened."""
    return open_bundle(fresh())


@pytest.fixture
def make_external() -> Callable[..., bytes]:
    return external_graph
