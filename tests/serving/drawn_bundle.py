"""A bundle that `mmprod serve` can serve whole, without a model: each graph is a few ONNX nodes.

Every row of an output is |sin(sum of that row's inputs + 1, 2, 3 ...)|, scaled to the output's
range, as in `fakes.answer`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import create_bundle
from mmprod.data.tokenizer import train_tokenizer
from mmprod.export.pipeline import add_codec_facts
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from tests.serving.fakes import DIMS, SAMPLER, SPECS

TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


def make_bundle(root: Path) -> Path:
    """All graphs of the catalog in fp32, a tokenizer, and the facts of a codec."""
    made = create_bundle(root, name="drawn", dims=DIMS, sampler=SAMPLER, provenance={})
    (root / "onnx").mkdir(exist_ok=True)
    for name, spec in SPECS.items():
        path = root / "onnx" / f"{name}.fp32.onnx"
        onnx.save(_graph(spec), path)
        made.add(path, role="onnx", graph=name, precision="fp32")
    captions = ["a smiling red face with green hair and round glasses", "blue clothes, white hat"]
    train_tokenizer(captions, DIMS.vocabulary).save(root / "tokenizer.json")
    made.add(root / "tokenizer.json", role="tokenizer")
    add_codec_facts(made, CodecFacts("ab" * 32, np.ones(DIMS.codebook_size, np.float32)))
    made.save()
    return root


def _graph(spec: GraphSpec) -> onnx.ModelProto:
    constants = {"flat": np.array([0, -1], np.int64), "axis": np.array([1], np.int64)}
    nodes, sums = [], []
    for tensor in spec.inputs:
        name = tensor.name
        nodes += [
            helper.make_node("Cast", [name], [f"{name}.cast"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{name}.cast", "flat"], [f"{name}.flat"]),
            helper.make_node("ReduceSum", [f"{name}.flat", "axis"], [f"{name}.sum"]),
        ]
        sums.append(f"{name}.sum")
    nodes.append(helper.make_node("Sum", sums, ["total"]))
    for tensor in spec.outputs:
        nodes += _output(tensor, constants)
    ports = [[_port(tensor) for tensor in tensors] for tensors in (spec.inputs, spec.outputs)]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, spec.name, *ports, initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _output(tensor: Tensor, constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """The nodes of one output; their constants are added."""
    name = tensor.name
    sizes = tensor.sizes({"batch": 1})[1:]
    constants[f"{name}.count"] = np.arange(1, np.prod(sizes) + 1, dtype=np.float32)
    constants[f"{name}.scale"] = np.float32(max(tensor.below - 1, 1))
    constants[f"{name}.shape"] = np.array([-1, *sizes], np.int64)
    return [
        helper.make_node("Add", ["total", f"{name}.count"], [f"{name}.angle"]),
        helper.make_node("Sin", [f"{name}.angle"], [f"{name}.wave"]),
        helper.make_node("Abs", [f"{name}.wave"], [f"{name}.share"]),
        helper.make_node("Mul", [f"{name}.share", f"{name}.scale"], [f"{name}.scaled"]),
        helper.make_node("Cast", [f"{name}.scaled"], [f"{name}.cast_"], to=TYPES[tensor.dtype]),
        helper.make_node("Reshape", [f"{name}.cast_", f"{name}.shape"], [name]),
    ]


def _port(tensor: Tensor) -> onnx.ValueInfoProto:
    sizes = [size.name if isinstance(size, Dim) else size for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], sizes)
