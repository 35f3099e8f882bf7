"""What a device at the edge loads for one answer."""

from __future__ import annotations

from pathlib import Path

from tests.deploying.bundles import small_bundle
from tools import edge


def test_an_answer_needs_numpy_and_one_engine_library(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    found = edge.measure(bundle.root, "a face")
    assert found["picture"] == [1, 8, 8, 3] and not found["torch"]
    heavy = {"numpy", "onnxruntime", "tokenizers", "pydantic", "pydantic_core"}
    light = {"annotated-types", "setuptools", "typing-inspection", "typing_extensions"}
    assert heavy <= set(found["distributions"]) <= heavy | light | {"mmprod"}
    assert found["bare_mib"] < found["peak_mib"] < 250
    assert 0 < found["opened_cpu_ms"] < found["answered_cpu_ms"]
    assert 0 < found["opened_ms"] < found["answered_ms"]
