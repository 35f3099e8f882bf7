"""Why a block leaves its limit: the class of cause, from its numbers, weights and operators.

Looked for in this order, first match: NaN or Inf (overflow, or a weight that holds them), products
on short mantissas throughout the graph (TF32), another structure, other weights, an id on the edge
between two, cancellation, plain rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.parity.bisect import Bisection
from mmprod.parity.surgery import DENSE, block_of, import_onnx, is_added

Kind = Literal[
    "overflow",
    "weight differs",
    "constant differs",
    "structure differs",
    "missing cast",
    "TF32",
    "index tie",
    "cancellation",
    "rounding",
]
CURABLE = ("overflow", "cancellation", "index tie", "rounding")
"""Causes of a reduced precision that computing the block in fp32 removes."""

CANCELLED = 16.0
"""How much smaller than its terms a sum is when cancellation is to blame."""

_SHORT = 1 << 13
"""float32 whose lowest 13 bits are zero have the mantissa of TF32."""


@dataclass(frozen=True)
class Cause:
    """What is wrong with the first block over its limit, in one line."""

    kind: Kind
    text: str


def find_cause(found: Bisection, reference: Path, suspect: Path, precision: str) -> Cause:
    """The cause at `found.first`, which must not be None."""
    assert found.first is not None
    onnx = import_onnx()
    good, bad = onnx.load(reference), onnx.load(suspect)
    block = found.first.block
    differs = _weights(good, bad, block, precision)
    broken = next((text for text, finite in differs if not finite), "")
    if broken:
        return Cause("weight differs", broken)
    overflow = _overflow(found)
    if precision == "fp32" and _is_tf32(good, bad):
        return Cause("TF32", "matrix products read operands with 10 bits of mantissa")
    structure = _structure(good, bad, block)
    if structure and not (overflow and precision != "fp32"):
        return structure
    if overflow:
        return Cause("overflow", overflow)
    if differs:
        return Cause("weight differs", differs[0][0])
    constant = _constants(good, bad, block, precision)
    if constant:
        return Cause("constant differs", constant)
    return _numeric(found, good, precision)


def _nodes(model: Any, block: str) -> dict[str, Any]:
    return {node.name: node for node in model.graph.node if block_of(node) == block}


def _stored(model: Any) -> dict[str, Array]:
    to_array = import_onnx().numpy_helper.to_array
    return {w.name: np.asarray(to_array(w)) for w in model.graph.initializer}


def _pairs(good: Any, bad: Any, block: str) -> list[tuple[str, Array, Array]]:
    """The constants that the nodes of a block read in both graphs, by place."""
    first, second = _stored(good), _stored(bad)
    others = _nodes(bad, block)
    found: list[tuple[str, Array, Array]] = []
    for name, node in _nodes(good, block).items():
        other = others.get(name)
        if other is None or len(other.input) != len(node.input):
            continue
        for mine, theirs in zip(node.input, other.input, strict=True):
            if mine in first and theirs in second:
                found.append((mine, first[mine], second[theirs]))
    return found


def _differ(one: Array, other: Array, precision: str) -> bool:
    """Whether they differ by more than rounding to the precision explains."""
    if one.shape != other.shape:
        return True
    if one.dtype.kind != "f":
        return not np.array_equal(one, other)
    allowed = {"fp32": 0.0, "fp16": 2.0**-10}.get(precision, 2.0**-6)
    a, b = one.astype(np.float64), other.astype(np.float64)
    return not bool((np.abs(a - b) <= allowed * np.abs(a) + (allowed and 1e-7)).all())


def _weights(good: Any, bad: Any, block: str, precision: str) -> list[tuple[str, bool]]:
    """Weights that differ, in words, and whether they are finite."""
    found: list[tuple[str, bool]] = []
    for name, one, other in _pairs(good, bad, block):
        if one.size > 1 and _differ(one, other, precision):
            finite = bool(np.isfinite(other).all()) if other.dtype.kind == "f" else True
            places = int((one != other).sum()) if one.shape == other.shape else one.size
            what = f"in {places} of {one.size} values" if finite else "and holds NaN or Inf"
            found.append((f"{name} differs {what}", finite))
    return found


def _constants(good: Any, bad: Any, block: str, precision: str) -> str:
    for name, one, other in _pairs(good, bad, block):
        if one.size == 1 and _differ(one, other, precision):
            return f"{name} is {other.reshape(()):g} instead of {one.reshape(()):g}"
    return ""


def _structure(good: Any, bad: Any, block: str) -> Cause | None:
    """Operators, attributes or wiring that differ; casts at the borders do not count."""
    mine, theirs = _nodes(good, block), _nodes(bad, block)
    extra = [n for name, n in theirs.items() if name not in mine and not is_added(name)]
    short = import_onnx().TensorProto
    if extra and all(node.op_type == "Cast" for node in extra):
        kinds = {a.i for node in extra for a in node.attribute if a.name == "to"}
        if kinds & {short.FLOAT16, short.BFLOAT16}:
            return Cause("missing cast", f"{extra[0].name}: the value is kept in 16 bits")
    if extra:
        return Cause("structure differs", f"{extra[0].name} ({extra[0].op_type}) is not in PyTorch")
    for name, node in mine.items():
        other = theirs.get(name)
        if other is None:
            return Cause("structure differs", f"{name} ({node.op_type}) is not there")
        if other.op_type != node.op_type:
            return Cause("structure differs", f"{name} is {other.op_type}, not {node.op_type}")
        if _attributes(node) != _attributes(other):
            return Cause("structure differs", f"{name} ({node.op_type}) has other attributes")
        if len(node.input) != len(other.input) or _plain(node) == [*reversed(_plain(other))] != (
            _plain(other)
        ):
            return Cause("structure differs", f"{name} ({node.op_type}) reads other values")
    return None


def _plain(node: Any) -> list[str]:
    """Names of inputs without the endings that a change of precision gives."""
    return [name.removesuffix("_half").removesuffix("_fp32") for name in node.input]


def _attributes(node: Any) -> dict[str, bytes]:
    return {a.name: a.SerializeToString(deterministic=True) for a in node.attribute}


def _overflow(found: Bisection) -> str:
    for name, got in found.suspect.items():
        wanted = found.reference[name]
        if got.dtype.kind == "f" and not np.isfinite(got).all() and np.isfinite(wanted).all():
            largest = float(np.abs(wanted.astype(np.float64)).max())
            return f"{name} is NaN or Inf in {int((~np.isfinite(got)).sum())} places; the \
reference reaches {largest:.4g}"
    return ""


def _is_tf32(good: Any, bad: Any) -> bool:
    """All weights of products are the reference's with a short mantissa."""
    first, second = _stored(good), _stored(bad)
    names = [
        name
        for node in bad.graph.node
        if node.op_type in DENSE
        for name in node.input[1:2]
        if name in first and name in second and first[name].dtype == np.float32
    ]

    def short(values: Array) -> bool:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return not bool((bits % _SHORT).any())

    return bool(names) and all(short(second[n]) for n in names) and not short(first[names[0]])


def _numeric(found: Bisection, good: Any, precision: str) -> Cause:
    """Neither weights nor structure differ: what arithmetic did."""
    assert found.first is not None
    node = next(n for n in good.graph.node if n.name == found.first.node)
    name = node.output[0]
    wanted = found.reference.get(name)
    if wanted is not None and wanted.dtype.kind != "f":
        share = float(np.mean(wanted != found.suspect[name]))
        return Cause("index tie", f"{node.name} picks another index in {share:.2%} of places")
    terms = [found.reference[n] for n in node.input if n in found.reference]
    if node.op_type in ("Sub", "Add") and terms and wanted is not None:
        size = max(float(np.sqrt(np.mean(np.square(term.astype(np.float64))))) for term in terms)
        left = float(np.sqrt(np.mean(np.square(wanted.astype(np.float64)))))
        if size > CANCELLED * left:
            return Cause("cancellation", f"{node.name}: terms of {size:.3g} leave {left:.3g}")
    return Cause(
        "rounding", f"{node.name}: errors of {precision} add up to {found.first.error:.2g}"
    )
