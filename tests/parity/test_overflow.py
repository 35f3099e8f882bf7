"""Half precision that overflows on a device and not on this CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle
from mmprod.errors import IntegrityError
from mmprod.parity import run
from mmprod.parity.report import Row
from mmprod.parity.run import Comparison
from tests.parity import fake_device
from tests.parity.toy import TO_VECTOR, TOKENS, add_onnx


def add_half_embedding(bundle: Bundle, gain: float) -> None:
    """embed_text in fp16, whose vectors are `gain` squared times too long before the norm."""
    path = bundle.root / "onnx" / "embed_text.fp32.onnx"
    model = onnx.load(path)
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    product.output[0] = "half_vector"
    product.name = "the_product"
    index = list(model.graph.node).index(product)
    cast = helper.make_node("Cast", ["half_vector"], ["vector"], to=TensorProto.FLOAT)
    model.graph.node.insert(index + 1, cast)
    for weight in model.graph.initializer:
        values: Any = {"table": gain * TOKENS, "to_vector": gain * TO_VECTOR}.get(weight.name)
        if values is not None:
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
    target = bundle.root / "onnx" / "embed_text.fp16.onnx"
    onnx.save(model, target)
    bundle.add(target, role="onnx", graph="embed_text", precision="fp16")
    bundle.save()


def half_row(bundle: Bundle, timeout_s: float | None = None) -> Row:
    report = Comparison(bundle, precisions=("fp16",), timeout_s=timeout_s).run()
    (row,) = [
        row
        for row in report.select(leg="torch-ort")
        if str(row.subject).endswith("text fp16") and row.subject.graph == "embed_text"
    ]
    return row


def test_the_row_says_where_the_arithmetic_is_not_half(bundle: Bundle) -> None:
    add_half_embedding(bundle, 1.0)
    row = half_row(bundle)
    words = "weights in fp16, arithmetic in fp32 on this CPU"
    assert row.status == "pass" and words in row.backend
    assert row.reason.endswith("no overflow in 3 half tensors")
    assert words in (bundle.root / "reports" / "parity.md").read_text()


def test_nothing_is_said_of_a_graph_without_half_tensors(bundle: Bundle) -> None:
    add_onnx(bundle, "embed_text", "fp16")
    bundle.save()
    row = half_row(bundle)
    assert row.status == "pass" and "overflow" not in row.reason


def test_overflow_fails_the_row_and_names_the_node(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_half_embedding(bundle, 1e3)
    row = half_row(bundle)
    assert row.status == "fail"
    assert "half precision overflows at the_product (MatMul)" in row.reason
    monkeypatch.setattr(run, "audit", lambda bundle, spec, row, start: row)
    assert half_row(bundle).status == "pass", "outputs alone do not show it on this CPU"


def test_an_audit_that_cannot_run_is_no_pass(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> dict[str, Any]:
        raise IntegrityError("the copy was refused", hint="doctor")

    add_half_embedding(bundle, 1.0)
    monkeypatch.setattr("mmprod.runners.ort.run_all", refuse)
    row = half_row(bundle)
    assert (row.status, row.advice) == ("fail", "doctor")
    assert row.reason == "overflow could not be checked: the copy was refused"


def test_with_a_time_out_the_audit_runs_in_a_worker(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_half_embedding(bundle, 1e3)
    assert "overflows at the_product (MatMul)" in half_row(bundle, 60).reason
    add_half_embedding(bundle, 1.0)
    monkeypatch.setattr("mmprod.parity.overflow.open_half", fake_device.crash_on_the_copy)
    row = half_row(bundle, 60)
    assert row.status == "fail"
    assert row.reason.startswith("overflow could not be checked: signal 6 (SIGABRT)")


def test_the_graph_is_parsed_in_the_worker_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may lie beside it."""
    add_half_embedding(bundle, 1e3)
    path = bundle.root / "onnx" / "embed_text.fp16.onnx"
    beside = path.with_name("embed_text.fp16.data")
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location=beside.name, size_threshold=60
    )
    bundle.add(path, role="onnx", graph="embed_text", precision="fp16")
    bundle.add(beside, role="onnx-data", graph="embed_text", precision="fp16")
    monkeypatch.setattr(onnx, "load", None)
    assert "overflows at the_product (MatMul)" in half_row(bundle, 60).reason
