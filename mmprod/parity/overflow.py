"""Would half precision overflow? ONNX Runtime's CPU provider does not tell by itself.

It has no half matrix products: it casts to fp32, computes there, and drops casts between two such
operators, so a value above 65504 passes unharmed, which is infinite on a device. Here a copy of the
graph shows every half tensor as an output, which brings the casts back, and the stored cases run
through it. Bodies of loops are not looked into: samplers are made of the plain graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.bundle import Bundle
from mmprod.errors import EnvironmentMissing, IntegrityError
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.cases import Case, stored_cases
from mmprod.parity.report import Row

_PLAIN_ONLY = "overflow checked on the plain graphs only"


def audit(bundle: Bundle, spec: GraphSpec, row: Row) -> Row:
    """The row with the audit's finding in its reason; failed when a half tensor overflows.

    Rows other than passed ones of reduced graphs on ONNX Runtime come back unchanged.
    """
    subject = row.subject
    if (subject.leg, row.status) != ("torch-ort", "pass") or subject.precision == "fp32":
        return row
    if spec.loop_steps:
        return replace(row, reason=f"{row.reason}; {_PLAIN_ONLY}")
    stored = bundle.artefacts(role="reference", graph=spec.name)
    cases = [case for artefact in stored for case in stored_cases(bundle.path(artefact), spec)]
    (graph,) = bundle.artefacts(role="onnx", graph=spec.name, precision=subject.precision)
    try:
        found, count = find_overflow(bundle.path(graph), cases)
    except EnvironmentMissing as error:
        return replace(row, reason=f"{row.reason}; overflow not checked: {error.message}")
    except IntegrityError as error:
        reason = f"overflow could not be checked: {error.message}"
        return replace(row, status="fail", reason=reason, advice=error.hint)
    if found:
        advice = "use fp32: values of this graph do not fit into half precision"
        return replace(row, status="fail", reason=found, advice=advice)
    return replace(row, reason=f"{row.reason}; no overflow in {count} half tensors")


def find_overflow(path: Path, cases: Iterable[Case]) -> tuple[str, int]:
    """The first half tensor with Inf or NaN, in words ("" for none), and how many were looked at.

    Raises EnvironmentMissing without onnx or onnxruntime, IntegrityError when the copy with all
    those outputs does not run.
    """
    try:
        import onnx

        from mmprod.runners.ort import run_all
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed", hint="pip install 'mmprod[export]'"
        ) from error
    model = onnx.load(path)
    light = onnx.load(path, load_external_data=False)  # inference takes 2 GB at most
    makers = _show_half(onnx, model, onnx.shape_inference.infer_shapes(light).graph)
    with tempfile.TemporaryDirectory(prefix="mmprod-overflow-") as folder:
        copy = Path(folder) / "copy.onnx"
        onnx.save(model, copy, save_as_external_data=True, location="copy.data", size_threshold=128)
        for case in cases if makers else ():
            for name, value in run_all(copy, list(makers), case.inputs).items():
                bad = int(value.size - np.isfinite(value).sum())
                if bad:
                    where = f"{case.name}: half precision overflows at {makers[name]}"
                    return f"{where}: Inf or NaN in {bad} of {value.size} places", len(makers)
    return "", len(makers)


def _show_half(onnx: Any, model: Any, known: Any) -> dict[str, str]:
    """Make every half tensor that a node computes an output; its node by the tensor's name.

    `known`: the graph with inferred types.
    """
    half = {
        value.name: value
        for value in known.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    made = {
        name: f"{node.name or name} ({node.op_type})"
        for node in model.graph.node
        if node.op_type != "Constant"
        for name in node.output
        if name in half
    }
    model.graph.output.extend(half[name] for name in made)
    return made
