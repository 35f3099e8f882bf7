"""A bundle to serve, made in a second: graphs written by hand, a trained tokenizer, a parity pass.

The graphs compute something that depends on every input, and need no exporter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle, create_bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.data.tokenizer import train_tokenizer
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.parity.report import limits_sha256

DIMS = Dims(image_size=8, grid=2, codebook_size=16, text_length=12, vocabulary=300, embedding=8)
SAMPLER = SamplerConfig(image_steps=2, text_steps=2)
TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
N, K, SIDE = DIMS.positions, DIMS.codebook_size, DIMS.image_size

Node = tuple[str, Sequence[str], str, dict[str, object]]

_DRAW: list[Node] = [
    ("Gather", ("codebook", "codes"), "entries", {}),
    ("Reshape", ("entries", "flat"), "joined", {}),
    ("MatMul", ("joined", "to_pixels"), "values", {}),
    ("Clip", ("values", "black", "white"), "clipped", {}),
    ("Reshape", ("clipped", "picture"), "shaped", {}),
    ("Cast", ("shaped",), "pixels", {"to": TensorProto.UINT8}),
]
_CHOOSE: list[Node] = [
    ("Add", ("drawn", "said"), "scores", {}),
    ("Reshape", ("scores", "places"), "by_place", {}),
    ("ArgMax", ("by_place",), "chosen", {"axis": 2, "keepdims": 0}),
    ("Cast", ("chosen",), "codes", {"to": TensorProto.INT32}),
]
_READ: list[Node] = [
    ("Gather", ("table", "tokens"), "words", {}),
    ("ReduceMean", ("words", "one"), "meaning", {"keepdims": 0}),
]
NODES: dict[str, list[Node]] = {
    "codec_encode": [
        ("Cast", ("pixels",), "levels", {"to": TensorProto.FLOAT}),
        ("Reshape", ("levels", "all_pixels"), "row", {}),
        ("MatMul", ("row", "to_scores"), "drawn", {}),
        ("Identity", ("nothing",), "said", {}),
        *_CHOOSE,
    ],
    "codec_decode": _DRAW,
    "embed_text": [
        *_READ,
        ("MatMul", ("meaning", "to_vector"), "vector", {}),
        ("ReduceL2", ("vector", "one"), "length", {"keepdims": 1}),
        ("Div", ("vector", "length"), "embedding", {}),
    ],
    "text_to_image": [
        *_READ,
        ("MatMul", ("meaning", "to_said"), "said", {}),
        ("Reshape", ("noise", "all_noise"), "luck", {}),
        ("MatMul", ("luck", "to_drawn"), "drawn", {}),
        *_CHOOSE,
        *_DRAW,
    ],
}


def small_bundle(root: Path) -> Bundle:
    """Four graphs in fp32, each with a parity pass, at `root`."""
    made = create_bundle(root, name="small", dims=DIMS, sampler=SAMPLER, provenance={})
    (root / "onnx").mkdir()
    rows = []
    for name in NODES:
        path = root / "onnx" / f"{name}.fp32.onnx"
        onnx.save(_model(made.specs[name]), path)
        artefact = made.add(path, role="onnx", graph=name, precision="fp32")
        row = {"leg": "torch-ort", "graph": name, "precision": "fp32", "target": ""}
        seal = {"sha256": {artefact.path: artefact.sha256}}
        rows.append({**row, "status": "pass", "reason": "made by hand", **seal})
    counts = {"ok": True, "pass": len(rows), "limits_sha256": limits_sha256()}
    made.put_summary("parity", {**counts, "rows": rows})
    captions = [f"a {colour} face with {hair} hair" for colour in "abc" for hair in "defg"]
    train_tokenizer(captions, DIMS.vocabulary).save(root / "tokenizer.json")
    made.add(root / "tokenizer.json", role="tokenizer")
    (root / "codec.npz").write_bytes(CodecFacts("00" * 32, np.full(K, 1 / K)).to_bytes())
    made.add(root / "codec.npz", role="codec")
    made.save()
    return made


def _model(spec: GraphSpec) -> onnx.ModelProto:
    nodes = [helper.make_node(op, list(i), [o], **more) for op, i, o, more in NODES[spec.name]]
    used = {name for node in nodes for name in node.input}
    stored = [numpy_helper.from_array(a, name) for name, a in _weights().items() if name in used]
    graph = helper.make_graph(
        nodes,
        spec.name,
        [_port(tensor) for tensor in spec.inputs],
        [_port(tensor) for tensor in spec.outputs],
        initializer=stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _port(tensor: Tensor) -> onnx.ValueInfoProto:
    shape = [size.name if isinstance(size, Dim) else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], shape)


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    noise = SAMPLER.image_steps * N
    return {
        "codebook": normal(K, 4),
        "to_pixels": 60 * normal(4 * N, SIDE * SIDE * 3) + 20,
        "to_scores": normal(SIDE * SIDE * 3, N * K),
        "table": normal(DIMS.vocabulary, 6),
        "to_vector": normal(6, DIMS.embedding),
        "to_said": normal(6, N * K),
        "to_drawn": normal(noise, N * K),
        "nothing": np.zeros((1, N * K), np.float32),
        "black": np.float32(0),  # type: ignore[dict-item]
        "white": np.float32(255),  # type: ignore[dict-item]
        "one": np.array([1], np.int64),
        "flat": np.array([-1, 4 * N], np.int64),
        "picture": np.array([-1, SIDE, SIDE, 3], np.int64),
        "places": np.array([-1, N, K], np.int64),
        "all_pixels": np.array([-1, SIDE * SIDE * 3], np.int64),
        "all_noise": np.array([-1, noise], np.int64),
    }
