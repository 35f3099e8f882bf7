"""Small graphs written twice, in NumPy (the reference) and in ONNX, and a bundle of them.

No trained model and no exporter takes part: the parity check is tested on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle, create_bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.runner import Array, example_inputs
from mmprod.graphs.spec import Dim, GraphSpec
from tests.parity.answers import CODEBOOK, REFERENCES, TO_PIXELS, TO_VECTOR, TOKENS, FakeRunner
from tests.parity.answers import Function as Function
from tests.parity.answers import decode as decode
from tests.parity.answers import embed as embed

DIMS = Dims(image_size=4, grid=2, codebook_size=24, text_length=3, vocabulary=20, embedding=5)
SAMPLER = SamplerConfig(image_steps=2, text_steps=2)
SPECS = build_catalog(DIMS, SAMPLER)


def numpy_reference(spec: GraphSpec) -> FakeRunner:
    return FakeRunner(spec, REFERENCES[spec.name])


def onnx_decode() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["codebook", "codes"], ["entries"]),
        helper.make_node("MatMul", ["entries", "to_pixels"], ["projected"]),
        helper.make_node("Mul", ["projected", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "black", "white"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Reshape", ["rounded", "picture"], ["shaped"]),
        helper.make_node("Cast", ["shaped"], ["pixels"], to=TensorProto.UINT8),
    ]
    weights = {
        "codebook": CODEBOOK,
        "to_pixels": TO_PIXELS,
        "scale": np.float32(40),
        "middle": np.float32(127.5),
        "black": np.float32(0),
        "white": np.float32(255),
        "picture": np.array([-1, 4, 4, 3], np.int64),
    }
    return _model(SPECS["codec_decode"], nodes, weights)


def onnx_embed() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["entries"]),
        helper.make_node("ReduceMean", ["entries", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "to_vector"], ["vector"]),
        helper.make_node("ReduceL2", ["vector", "axis"], ["norm"], keepdims=1),
        helper.make_node("Div", ["vector", "norm"], ["embedding"]),
    ]
    weights = {"table": TOKENS, "to_vector": TO_VECTOR, "axis": np.array([1], np.int64)}
    return _model(SPECS["embed_text"], nodes, weights)


ONNX = {"codec_decode": onnx_decode, "embed_text": onnx_embed}


def _model(
    spec: GraphSpec, nodes: list[onnx.NodeProto], weights: Mapping[str, Array]
) -> onnx.ModelProto:
    types = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
    ports = [
        [
            helper.make_tensor_value_info(
                t.name, types[t.dtype], [d.name if isinstance(d, Dim) else d for d in t.shape]
            )
            for t in tensors
        ]
        for tensors in (spec.inputs, spec.outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, spec.name, *ports, initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def stored(name: str, batches: tuple[int, ...] = (1, 3)) -> dict[str, Array]:
    """The content of a reference file."""
    arrays: dict[str, Array] = {}
    for batch in batches:
        inputs = example_inputs(SPECS[name], batch, seed=100 + batch)
        arrays.update({f"b{batch}/in/{key}": value for key, value in inputs.items()})
        outputs = REFERENCES[name](inputs)
        arrays.update({f"b{batch}/out/{key}": value for key, value in outputs.items()})
    return arrays


def add_onnx(bundle: Bundle, name: str, precision: str) -> None:
    path = bundle.root / "onnx" / f"{name}.{precision}.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(ONNX[name](), path)
    bundle.add(path, role="onnx", graph=name, precision=precision, meta={"note": "kept"})


def make_toy(root: Path, names: Iterable[str] = ONNX) -> Bundle:
    """These graphs in fp32 with stored cases b1 and b3, at `root`."""
    made = create_bundle(
        root, name="toy", dims=DIMS, sampler=SAMPLER, provenance={"made": "by hand"}
    )
    for name in names:
        add_onnx(made, name, "fp32")
        path = made.root / "reference" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **stored(name))  # type: ignore[arg-type]
        made.add(path, role="reference", graph=name)
    made.save()
    return made
