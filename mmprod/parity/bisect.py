"""Where does a graph leave its reference? Compares both block by block on the stored cases.

    reference graph --> values at block borders --+
                                                  +--> first block over its limit --> its cause
    suspect graph   --> the same values ----------+

A block is a module path of ours, read from the names of the nodes. Both graphs come from the same
exporter, so a value has the same name in both, whatever the precision. Every value that crosses a
border is compared; the first one over its limit, in the order of the graph, was made by the block
to blame, because all that this block read was still right. Bodies of loops are not looked into:
samplers are made of the blocks of the plain graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.parity.cases import Case
from mmprod.parity.surgery import block_of, import_onnx

LIMITS = {
    "fp32": 1e-5, "fp16": 1e-2, "bf16": 6e-2, "mixed": 1e-1, "int8": 1e-1, "fp8": 1.5e-1
}  # fmt: skip
"""Relative error of a block's outputs. fp32 against fp32 runs the same operators: any fault is far
above. Rounding alone stays some times below the others after the blocks of a graph."""

ID_LIMITS = {"fp32": 1e-5, "fp16": 0.05, "bf16": 0.3, "mixed": 0.3, "int8": 0.3, "fp8": 0.3}
"""Share of ids that differ, over all cases. Which of them are ties, parity judges; here a block is
to blame that clearly picks others."""

FLOOR = 1e-6
"""Values below are taken for zero."""


@dataclass
class BlockError:
    """The error of the value that is furthest beyond its limit, of those a block hands on. `node`:
    which made the first that is over, or the first of all.
    """

    block: str
    node: str
    error: float = 0.0
    limit: float = 0.0

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


@dataclass(frozen=True)
class Bisection:
    """All blocks in the order of the graph, and the first one over its limit (None: all agree)."""

    blocks: tuple[BlockError, ...]
    first: BlockError | None
    reference: dict[str, Array]
    suspect: dict[str, Array]
    """Values of the worst case by name, for the cause."""


def bisect(
    reference: Path, suspect: Path, cases: Iterable[Case], precision: str, narrow: bool = True
) -> Bisection:
    """Compare two plain graphs; see the module. Raises IntegrityError when one does not run.

    `narrow`: within the block to blame, look at every value for the node that is wrong first.
    """
    onnx = import_onnx()
    good, bad = _Graph(onnx.load(reference), "fp32"), _Graph(onnx.load(suspect), precision)
    found = list(cases)
    borders = border_values(good.model)
    blocks = _compare(good, bad, borders, found)
    first = next((block for block in blocks[0] if not block.ok), None)
    kept = blocks[1:]
    if first is not None and narrow:
        inner = {
            name: first.block
            for node in good.model.graph.node
            if block_of(node) == first.block
            for name in node.output
        }
        within = _compare(good, bad, inner, found, per_value=True)
        wrong = next((block for block in within[0] if not block.ok), None)
        if wrong is not None:
            first.node, kept = wrong.node, within[1:]
    return Bisection(tuple(blocks[0]), first, *kept)


def border_values(model: Any) -> dict[str, str]:
    """Every value read by another block than the one that makes it, and outputs: value -> block."""
    makers = {name: block_of(node) for node in model.graph.node for name in node.output if name}
    crossing = {value.name for value in model.graph.output}
    for node in model.graph.node:
        crossing.update(n for n in node.input if makers.get(n, block_of(node)) != block_of(node))
    return {name: block for name, block in makers.items() if name in crossing}


@dataclass(frozen=True)
class _Graph:
    """A loaded graph."""

    model: Any
    precision: str


def _compare(
    good: _Graph,
    bad: _Graph,
    values: dict[str, str],
    cases: Sequence[Case],
    per_value: bool = False,
) -> tuple[list[BlockError], dict[str, Array], dict[str, Array]]:
    """Errors by block (or value), in the order in which each is first over its limit or made; the
    values of the worst case.
    """
    there = {name for node in bad.model.graph.node for name in node.output}
    names = [name for name in values if name in there]
    makers = {name: node.name for node in good.model.graph.node for name in node.output}
    found = {name: _Error(bad.precision) for name in names}
    worst = -1.0
    kept: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for case in cases:
        wanted, got = _values(good, names, case), _values(bad, names, case)
        used = [found[name].add(wanted[name], got[name]) for name in names]
        if max(used, default=0.0) > worst:
            worst, kept = max(used, default=0.0), (wanted, got)
    blocks: dict[str, BlockError] = {}
    for name in names:
        error = found[name]
        key = name if per_value else values[name]
        block = blocks.get(key)
        if block is None or (block.ok and error.used > 1):  # it goes to where it is first wrong
            blocks.pop(key, None)
            block = blocks[key] = BlockError(values[name], makers[name], error.value, error.limit)
        elif error.used > block.error / block.limit:
            block.error, block.limit = error.value, error.limit
    return list(blocks.values()), *kept


class _Error:
    """How far one value is off over all cases. `used`: the share of its limit, 1 at the limit."""

    def __init__(self, precision: str) -> None:
        self.value, self.limit = 0.0, LIMITS[precision]
        self._precision = precision
        self._wrong, self._count = 0, 0

    @property
    def used(self) -> float:
        return self.value / self.limit

    def add(self, wanted: Array, got: Array) -> float:
        """Take one case; the share of the limit that it uses by itself."""
        error = relative_error(wanted, got)
        if is_number(wanted) or wanted.shape != got.shape:
            self.value = max(self.value, error)
            return error / self.limit
        self.limit = ID_LIMITS[self._precision]
        self._wrong += int((wanted != got).sum())
        self._count += wanted.size
        self.value = self._wrong / max(self._count, 1)
        return error / self.limit


def is_number(values: Array) -> bool:
    """Whether differences have a size: not of ids and truth values, but of colours."""
    return values.dtype.kind == "f" or values.dtype == np.uint8


def relative_error(wanted: Array, got: Array) -> float:
    """RMS of the difference over RMS of the reference; infinite for another shape, and for NaN or
    Inf in one of them only. Of ids and truth values the share that differs.
    """
    if wanted.shape != got.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    if not is_number(wanted):
        return float(np.mean(wanted != got))
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    a, b = a[finite], b[finite]
    gap = float(np.sqrt(np.mean(np.square(a - b)))) if a.size else 0.0
    size = float(np.sqrt(np.mean(np.square(a)))) if a.size else 0.0
    return gap / max(size, FLOOR)


def _values(graph: _Graph, names: Sequence[str], case: Case) -> dict[str, Array]:
    """These values of a graph, computed without any optimization, each rounded as its precision
    demands: of its own accord a CPU leaves that out between two half operators (overflow.py).
    """
    from mmprod.runners.bf16 import emulate
    from mmprod.runners.ort import run_all

    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model)
    half = onnx.TensorProto.FLOAT16
    kinds = {"fp16": half, "mixed": half, "bf16": onnx.TensorProto.BFLOAT16}
    if graph.precision in kinds:
        emulate(copy, kinds[graph.precision])
    shown = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in shown)
    with tempfile.TemporaryDirectory(prefix="mmprod-explain-") as folder:
        path = Path(folder) / "shown.onnx"
        onnx.save(copy, path, save_as_external_data=True, location="data", size_threshold=128)
        return run_all(path, names, case.inputs)
