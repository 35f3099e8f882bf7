"""Would half precision overflow? ONNX Runtime's CPU provider does not tell by itself.

It has no half matrix products: it casts to fp32, computes there, and drops casts between two such
operators, so a value above 65504 passes unharmed, which is infinite on a device. Here the graph
shows every half tensor as an output (half.py), which brings the casts back, and the stored cases
run through it. Bodies of loops are not looked into: samplers are made of the plain graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from mmprod.bundle import Bundle
from mmprod.errors import EnvironmentMissing, IntegrityError, ParityFailed
from mmprod.graphs.runner import Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry
from mmprod.parity.cases import Case, stored_cases
from mmprod.parity.half import open_half
from mmprod.parity.report import Row

_PLAIN_ONLY = "overflow checked on the plain graphs only"

Start = Callable[[partial[Runner], Sequence[FileEntry]], Runner]
"""a call that opens a runner, the files it reads -> the runner, here or in a worker"""


def open_here(call: partial[Runner], files: Sequence[FileEntry]) -> Runner:
    return call()


def audit(bundle: Bundle, spec: GraphSpec, row: Row, start: Start = open_here) -> Row:
    """The row with the audit's finding in its reason; failed when a half tensor overflows.

    Rows other than passed ones of reduced graphs on ONNX Runtime, and those of graphs without half
    tensors (bf16, int8, fp8), come back unchanged.
    """
    subject = row.subject
    if (subject.leg, row.status) != ("torch-ort", "pass") or subject.precision == "fp32":
        return row
    if spec.loop_steps:
        return replace(row, reason=f"{row.reason}; {_PLAIN_ONLY}")
    stored = bundle.artefacts(role="reference", graph=spec.name)
    cases = [case for artefact in stored for case in stored_cases(bundle.path(artefact), spec)]
    (graph,) = bundle.artefacts(role="onnx", graph=spec.name, precision=subject.precision)
    opener = partial(open_half, spec, bundle.path(graph))
    try:
        found, count = find_overflow(spec, cases, lambda: start(opener, subject.files))
    except EnvironmentMissing as error:
        return replace(row, reason=f"{row.reason}; overflow not checked: {error.message}")
    except (IntegrityError, ParityFailed) as error:
        reason = f"overflow could not be checked: {error.message}"
        return replace(row, status="fail", reason=reason, advice=error.hint)
    if found:
        advice = "use fp32: values of this graph do not fit into half precision"
        return replace(row, status="fail", reason=found, advice=advice)
    if not count:
        return row  # nothing was looked at, so nothing is said
    return replace(row, reason=f"{row.reason}; no overflow in {count} half tensors")


def find_overflow(
    spec: GraphSpec, cases: Iterable[Case], open_graph: Callable[[], Runner]
) -> tuple[str, int]:
    """The first half tensor with Inf or NaN, in words ("" for none), and how many were looked at.

    `open_graph`: see half.py. Raises what it does, and IntegrityError when the graph with all those
    outputs does not run.
    """
    runner = open_graph()
    count = 0
    try:
        for case in cases:
            found = runner(case.inputs)
            count = len(found)
            for maker, (bad, size) in found.items():
                if bad:
                    where = f"{case.name}: half precision overflows at {maker}"
                    return f"{where}: Inf or NaN in {bad} of {size} places", count
    finally:
        runner.close()
    return "", count
