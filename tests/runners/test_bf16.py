"""bf16 graphs on a processor without bf16: an emulation that rounds, and says so."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from mmprod.export.precision import cast_model
from mmprod.runners.ort import OrtRunner
from tests.export.small_onnx import graph, matrix, node
from tests.export.test_precision import SPEC, block


def test_results_are_rounded_to_bf16(tmp_path: Path) -> None:
    weight = matrix(1)
    model = cast_model(graph([node("MatMul", "x w", "y")], {"w": weight}), "bf16")
    path = tmp_path / "g.onnx"
    path.write_bytes(model.SerializeToString())
    runner = OrtRunner(SPEC, path, threads=1, precision="bf16")
    assert "bf16 emulated" in runner.backend
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    found = runner({"x": x})["y"]

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    np.testing.assert_array_equal(found, rounded(found))
    exact = rounded(x) @ rounded(weight)
    np.testing.assert_allclose(found, exact, rtol=2.0**-8, atol=1e-6)
    assert (found != exact).any()


def test_every_operator_between_casts_is_emulated(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    path.write_bytes(block().SerializeToString())
    exact = OrtRunner(SPEC, path, threads=1)({"x": x})["y"]
    path.write_bytes(cast_model(block(), "bf16").SerializeToString())
    found = OrtRunner(SPEC, path, threads=1, precision="bf16")({"x": x})["y"]
    np.testing.assert_allclose(found, exact, atol=3e-2 * np.abs(exact).max())
    assert (found != exact).any()
