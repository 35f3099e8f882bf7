"""Would half precision overflow? ONNX Runtime's CPU provider does not tell by itself.

It has no half matrix products: it casts to fp32, computes there, and drops casts between two such
operators, so a value above 65504 passes unharmed, which is infinite on a device. Here a copy of the
graph shows every half tensor as an output, which brings the casts back, and the stored cases run
through it. Bodies of loops are not looked into: samplers are made of the plain graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle
from mmprod.errors import EnvironmentMissing, IntegrityError, ParityFailed
from mmprod.graphs.runner import Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.cases import Case, stored_cases
from mmprod.parity.openers import open_half
from mmprod.parity.report import Row

_PLAIN_ONLY = "overflow checked on the plain graphs only"

Start = Callable[[partial[Runner]], Runner]
"""a call that opens a runner -> the runner, in this process or in a worker"""


def open_here(call: partial[Runner]) -> Runner:
    return call()


def audit(bundle: Bundle, spec: GraphSpec, row: Row, start: Start = open_here) -> Row:
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
        found, count = find_overflow(spec, bundle.path(graph), cases, start)
    except EnvironmentMissing as error:
        return replace(row, reason=f"{row.reason}; overflow not checked: {error.message}")
    except (IntegrityError, ParityFailed) as error:
        reason = f"overflow could not be checked: {error.message}"
        return replace(row, status="fail", reason=reason, advice=error.hint)
    if found:
        advice = "use fp32: values of this graph do not fit into half precision"
        return replace(row, status="fail", reason=found, advice=advice)
    return replace(row, reason=f"{row.reason}; no overflow in {count} half tensors")


def find_overflow(
    spec: GraphSpec, path: Path, cases: Iterable[Case], start: Start = open_here
) -> tuple[str, int]:
    """The first half tensor with Inf or NaN, in words ("" for none), and how many were looked at.

    Raises EnvironmentMissing without onnx or onnxruntime, IntegrityError when the copy with all
    those outputs does not run, and what `start` raises.
    """
    try:
        import onnx
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
        if makers:
            runner = start(partial(open_half, spec, copy, *makers))
            try:
                return _first_overflow(runner, cases, makers), len(makers)
            finally:
                runner.close()
    return "", 0


def _first_overflow(runner: Runner, cases: Iterable[Case], makers: dict[str, str]) -> str:
    for case in cases:
        for name, (bad, size) in runner(case.inputs).items():
            if bad:
                where = f"{case.name}: half precision overflows at {makers[name]}"
                return f"{where}: Inf or NaN in {bad} of {size} places"
    return ""


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
