"""int8 where a block bears it, fp16 elsewhere: the choice, the types, the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from mmprod.errors import NumericsError, PrecisionMismatch
from mmprod.export.calibrate import Measured, calibrate
from mmprod.export.computed_types import assert_precision, precision_of
from mmprod.export.graph import assemble
from mmprod.export.mixed import BEARABLE, int8_products, mix_model, mixable
from mmprod.export.precision import cast_model
from mmprod.export.quantize import quantizable, quantize_model
from mmprod.graphs.runner import Array
from mmprod.runners.bf16 import emulate
from mmprod.runners.ort import OrtRunner
from tests.export.small_onnx import graph, matrix, node
from tests.export.test_precision import SPEC

FIRST, SECOND, HEAD = "net.blocks.0", "net.blocks.1", "net.head"


def chain() -> onnx.ModelProto:
    """Two blocks, the first with products of two values, and a head."""
    nodes = [
        node("MatMul", "x w1", "a", f"{FIRST}.up"),
        node("Relu", "a", "b", FIRST),
        node("MatMul", "b w2", "c", f"{FIRST}.down"),
        node("Mul", "c c", "squares", FIRST),
        node("Transpose", "squares", "turned", FIRST, perm=[1, 0]),
        node("MatMul", "c turned", "scores", FIRST),
        node("MatMul", "scores c", "mixed", FIRST),
        node("MatMul", "mixed w3", "d", f"{SECOND}.up"),
        node("Exp", "d", "e", SECOND),
        node("MatMul", "e w4", "y", HEAD),
    ]
    weights = {f"w{n}": matrix(n, 0.1) for n in range(1, 5)}
    return graph(nodes, weights)


def samples(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)


def measured(model: onnx.ModelProto) -> Measured:
    found = calibrate(SPEC, nn.Identity(), {"small": model}, [{"x": samples()}], errors=True)
    return found["small"]


def mixed(*delicate: str) -> onnx.ModelProto:
    """The chain with some products that do not bear int8."""
    model = chain()
    names = {product.name for product in quantizable(model.graph)}
    return mix_model(model, measured(model).ranges, names - set(delicate))


def run(model: onnx.ModelProto, x: Array, path: Path, precision: str) -> Array:
    path.write_bytes(model.SerializeToString())
    return OrtRunner(SPEC, path, threads=1, precision=precision)({"x": x})["y"]


def kinds(model: onnx.ModelProto) -> dict[str, str]:
    """The type of each product: of its stored weight, or of what it reads."""
    stored = {t.name: t.data_type for t in model.graph.initializer}
    made = {out: n for n in model.graph.node for out in n.output}
    found = {}
    for product in (n for n in model.graph.node if n.op_type == "MatMul"):
        source = made.get(product.input[1])
        quantized = source is not None and source.op_type == "DequantizeLinear"
        half = stored.get(product.input[1]) == TensorProto.FLOAT16 or source is not None
        found[product.name.rpartition("/")[2]] = "int8" if quantized else "fp16" if half else "?"
    return found


def test_the_error_of_a_product_is_what_int8_moves(tmp_path: Path) -> None:
    """Of the first product, which reads the input of the graph, reckoned from a quantized graph."""
    model = graph([node("MatMul", "x w1", "y", FIRST)], {"w1": matrix(1)})
    found = measured(model)
    exact = run(model, samples(), tmp_path / "exact.onnx", "fp32")
    moved = run(quantize_model(model, "int8", found.ranges), samples(), tmp_path / "q.onnx", "int8")
    expected = np.linalg.norm(moved - exact) / np.linalg.norm(exact)
    assert found.errors[f"{FIRST}/y"] == pytest.approx(expected, rel=0.03)  # fp16 scales
    assert 1e-4 < expected < BEARABLE


def test_errors_are_asked_for() -> None:
    found = calibrate(SPEC, nn.Identity(), {"small": chain()}, [{"x": samples()}])
    assert found["small"].errors == {}
    assert set(measured(chain()).errors) == {n.name for n in quantizable(chain().graph)}


def test_a_product_is_int8_when_it_bears_it() -> None:
    errors = {"a": BEARABLE, "b": 1.01 * BEARABLE, "c": float("nan"), "d": 0.0}
    assert int8_products(errors) == {"a", "d"}


@pytest.mark.parametrize(
    "delicate", [f"{FIRST}.up/a", f"{FIRST}.down/c", f"{SECOND}.up/d", f"{HEAD}/y"]
)
def test_types_are_as_chosen(delicate: str) -> None:
    made = mixed(delicate)
    onnx.checker.check_model(made, full_check=True)
    assert_precision(made, "mixed")
    expected = dict.fromkeys(("a", "c", "d", "y"), "int8") | {"scores": "fp16", "mixed": "fp16"}
    expected[delicate.rpartition("/")[2]] = "fp16"
    assert kinds(made) == expected
    counts = list(expected.values())
    assert precision_of(made) == {kind: counts.count(kind) for kind in ("fp16", "int8")}
    scales = [t for t in made.graph.initializer if t.name.endswith("_scale")]
    assert {t.data_type for t in scales} == {TensorProto.FLOAT16}


def test_convolutions_stay_half() -> None:
    picture = (TensorProto.FLOAT, ["batch", 8, 2, 2])
    weight = np.full((8, 8, 1, 1), 0.1, np.float32)
    model = graph([node("Conv", "x w", "y", FIRST)], {"w": weight}, {"x": picture}, {"y": picture})
    assert mixable(model.graph) == []
    made = mix_model(model, {"x": 1.0}, {f"{FIRST}/y"})
    assert precision_of(made) == {"fp16": 1}
    assert_precision(made, "mixed")


def test_nothing_in_int8_is_the_fp16_graph(tmp_path: Path) -> None:
    model, found = chain(), measured(chain())
    made = mix_model(model, found.ranges, frozenset())
    assert precision_of(made) == {"fp16": 6}
    one = run(made, samples(1), tmp_path / "one.onnx", "mixed")
    assert np.array_equal(one, run(cast_model(model, "fp16"), samples(1), tmp_path / "h", "fp16"))


def test_the_numbers_are_near(tmp_path: Path) -> None:
    exact = run(chain(), samples(), tmp_path / "exact.onnx", "fp32")
    found = run(mixed(), samples(), tmp_path / "mixed.onnx", "mixed")
    assert (exact != found).any()
    assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()


def test_rounding_by_hand_gives_the_same(tmp_path: Path) -> None:
    """The emulation that looks for overflow rounds what is half, and leaves int8 alone."""
    made = mixed()
    found = run(made, samples(), tmp_path / "mixed.onnx", "mixed")
    emulate(made, TensorProto.FLOAT16)
    rounded = run(made, samples(), tmp_path / "rounded.onnx", "fp32")
    assert np.abs(rounded - found).max() < 0.02 * np.abs(found).max()


@pytest.mark.parametrize("size", [1e-4, 1e-5])
def test_what_scales_of_fp16_do_not_hold_stays_half(size: float) -> None:
    """Of weights: the error is that of the scales that are shipped."""
    model = graph([node("MatMul", "x w", "y", FIRST)], {"w": matrix(1, size)})
    found = measured(model)
    assert found.errors[f"{FIRST}/y"] > 10 * BEARABLE
    assert int8_products(found.errors) == frozenset()


@pytest.mark.parametrize("x", [np.zeros((4, 8)), np.full((4, 8), 9e4)], ids=["zeros", "beyond"])
def test_what_samples_do_not_tell_stays_half(x: Array) -> None:
    model = graph([node("MatMul", "x w1", "y", FIRST)], {"w1": matrix(1)})
    given = [{"x": x.astype(np.float32)}]
    found = calibrate(SPEC, nn.Identity(), {"small": model}, given, errors=True)["small"]
    assert np.isnan(found.errors[f"{FIRST}/y"])
    assert int8_products(found.errors) == frozenset()


def test_a_scale_beyond_fp16_is_refused() -> None:
    model = graph([node("MatMul", "x w1", "y", FIRST)], {"w1": matrix(1)})
    with pytest.raises(NumericsError, match="beyond float16"):
        mix_model(model, {"x": 1e7}, {f"{FIRST}/y"})


def test_other_types_are_refused() -> None:
    with pytest.raises(PrecisionMismatch, match="asked for mixed"):
        assert_precision(chain(), "mixed")
    with pytest.raises(PrecisionMismatch, match="asked for mixed"):
        assert_precision(quantize_model(chain(), "int8", measured(chain()).ranges), "mixed")
    with pytest.raises(PrecisionMismatch, match="asked for fp16"):
        assert_precision(mixed(), "fp16")
    alone = graph([node("MatMul", "x w1", "y", FIRST)], {"w1": matrix(1)})
    with pytest.raises(PrecisionMismatch, match="asked for mixed"):  # dequantized to fp32
        assert_precision(quantize_model(alone, "int8", {"x": 1.0}), "mixed")


def test_without_measurements_it_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs ranges"):
        assemble(SPEC, nn.Identity(), {"small": chain()}, "mixed")
    with pytest.raises(ValueError, match="mix_model"):
        cast_model(chain(), "mixed")


def test_what_is_not_finite_ends_it() -> None:
    bad = samples()
    bad[0, 0] = np.nan
    with pytest.raises(NumericsError):
        calibrate(SPEC, nn.Identity(), {"small": chain()}, [{"x": bad}], errors=True)
