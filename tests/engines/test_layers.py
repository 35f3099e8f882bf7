"""Kernels and memory from the text of a build log and from an inspector's JSON."""

from __future__ import annotations

import json

import pytest

from mmprod.engines.layers import is_attention, keep, parse_inspector, parse_log, parse_memory
from mmprod.errors import PrecisionMismatch


def tensor(name: str, dims: str, kind: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], "
        f"Datatype: {kind}, Format: (Linear) Row major linear format }}"
    )


def line(name: str, kind: str, tensors: tuple[str, str, str], nodes: str) -> str:
    inputs, constants, outputs = (f"[ {t}]" if t else "[]" for t in tensors)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {inputs}, Constants: {constants}, "
        f"Outputs: {outputs}, TacticName: t_{name}, StreamId: 0, Metadata: {nodes}"
    )


def test_kernels_of_a_log() -> None:
    scale, bias = tensor("alpha", "1", "Float"), tensor("b", "1,64", "Float")
    weights = ", ".join([tensor("w", "16,64", "Half"), scale, bias])
    x, y = tensor("x", "-1,16", "Half"), tensor("y", "-1,64", "Half")
    looped = "$$m$$(Unnamed Loop* 0)^body_myl0_7"
    text = "\n".join(
        [
            "Layers:",
            line("__mye_0", "shape_call", ("", "", ""), ""),
            line(looped, "gemm", (x, weights, y), "[ONNX Layer: a][ONNX Layer: b_1]"),
            line("_gemm_mha_v2_3", "kgen", (f"{x}, {x}", "", y), "[ONNX Layer: s]"),
            "",
            "I/O Tensors:",
            " Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,16], Location: Device",
        ]
    )
    shape, product, attention = parse_log(["something else", text])
    assert (shape.type, shape.inputs, shape.nodes) == ("shape_call", (), ())
    assert product.name == looped
    assert product.weights == ("Half",)
    assert product.inputs == product.outputs == ("Half",)
    assert product.nodes == ("a", "b_1")
    assert attention.inputs == ("Half", "Half")
    assert [is_attention(kernel) for kernel in (shape, product, attention)] == [False, False, True]


def test_a_layer_that_cannot_be_read_is_refused() -> None:
    good = line("a", "gemm", ("", "", ""), "[ONNX Layer: a]")
    for bad in ("Name: b, LayerType: gemm, Inputs: half", "b is a gemm"):
        with pytest.raises(PrecisionMismatch, match="cannot be read.*" + bad):
            parse_log([f"Layers:\n{good}\n{bad}\n\nI/O Tensors:"])
    with pytest.raises(PrecisionMismatch, match="only a name"):
        parse_inspector(json.dumps({"Layers": ["only a name"]}))


def test_memory_of_a_log() -> None:
    messages = [
        "Total Host Persistent Memory: 80 bytes",
        "Max Scratch Memory: 8196096 bytes",
        "Total Weights Memory: 6400 bytes",
        "Layer: x Scratch Memory: 1 bytes",
    ]
    assert parse_memory(messages) == {"host_persistent": 80, "scratch": 8196096, "weights": 6400}
    assert [keep(message) for message in messages] == [True, True, True, False]


def test_kernels_of_an_inspector() -> None:
    half = {"Name": "x", "Dimensions": [-1, 16], "Format/Datatype": "Row major linear FP16 format"}
    layers = [
        {
            "Name": "first",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [half],
            "Outputs": [{**half, "Format/Datatype": "Half"}],
            "Weights": {"Type": "Half", "Count": 1024},
            "TacticName": "sm80_gemm",
            "Metadata": "[ONNX Layer: first]\x1e[ONNX Layer: relu]",
        },
        {
            "Name": "myelin",
            "LayerType": "gemm",
            "Inputs": [{"Name": "h", "Dimensions": [-1, 64], "Datatype": "BFloat16"}],
            "Constants": [{"Name": "w", "Dimensions": [64, 8], "Datatype": "Float"}],
            "Outputs": [],
        },
    ]
    first, second = parse_inspector(json.dumps({"Layers": layers, "Bindings": ["x"]}))
    assert (first.inputs, first.weights, first.outputs) == (("Half",), ("Half",), ("Half",))
    assert first.nodes == ("first", "relu")
    assert (second.inputs, second.weights, second.nodes) == (("BFloat16",), ("Float",), ())
