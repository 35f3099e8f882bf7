"""Asked precision = precision in the graph = precision in the engine, or an error.

Only the heavy operators count: matrix products, convolutions, attention. Norms, softmax, the
codebook search and the sampling arithmetic stay fp32 on purpose, so a half graph has a few fp32
products; most of its heavy operators must be half. An fp32 graph has no exception.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmprod.engines.layers import Kernel
from mmprod.errors import PrecisionMismatch

DATATYPES: dict[str, frozenset[str]] = {
    "fp32": frozenset({"Float"}),
    "fp16": frozenset({"Half"}),
    "bf16": frozenset({"BFloat16"}),
    "mixed": frozenset({"Half", "Int8"}),
    "int8": frozenset({"Int8"}),
    "fp8": frozenset({"FP8"}),
}
MOST = 0.5
"""Share of the heavy operators that must have the asked precision."""

_FLOATING = frozenset().union(*DATATYPES.values())
_MOVING = {"kgen", "memset", "shape_call", "move", "reformat", "Reformat", "NoOp", "Constant"}
"""Types of kernels that mostly move, rescale or combine; a product inside one shows in its name."""
_PRODUCT = re.compile(r"gemm|mha|conv|fc", re.IGNORECASE)


@dataclass(frozen=True)
class PrecisionReport:
    """Heavy operators of one engine by datatype, in the graph and in the kernels."""

    asked: str
    operators: int
    in_graph: dict[str, int]
    in_engine: dict[str, int]
    share: float | None
    """of heavy operators in the asked precision, in the engine; None when there are none"""
    others: tuple[str, ...]
    """heavy operators in another precision, with it"""
    unseen: tuple[str, ...]
    """heavy operators that no kernel names: folded into constants"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_graph(asked: str, operators: Mapping[str, str], label: str) -> None:
    """Compare the graph with what was asked. `operators`: datatype of each heavy operator, by node.

    Raises PrecisionMismatch when any operator of an fp32 graph is not Float, or when a reduced
    graph has another reduced type or most of its operators not reduced.
    """
    wanted = DATATYPES[asked]
    allowed = set(wanted)
    if asked != "fp32":
        allowed.add("Float")
    if asked in ("int8", "fp8"):
        allowed |= {"Half", "BFloat16"}
    strangers = _named(operators, lambda kind: kind not in allowed)
    others = _named(operators, lambda kind: kind not in wanted)
    if strangers or len(others) > (1 - MOST) * len(operators):
        shown = strangers or others
        raise PrecisionMismatch(
            f"{label}: {asked} was asked, but {len(shown)} of {len(operators)} heavy operators "
            f"of the graph are not {' or '.join(sorted(wanted))}: {_some(shown)}",
            hint=f"export the graph in {asked}: mmprod export RUN --precision {asked}",
        )


def check_engine(
    asked: str,
    operators: Mapping[str, str],
    kernels: Sequence[Kernel],
    *,
    tf32: bool,
    label: str,
    constant: Collection[str] = (),
) -> PrecisionReport:
    """Compare the engine with its graph. `constant`: operators that read constants alone; only
    they may have no kernel. Raises PrecisionMismatch naming the first that differ.
    """
    wanted = DATATYPES[asked]
    found = {node: _built_as(node, kind, kernels) for node, kind in operators.items()}
    seen = {node: kind for node, kind in found.items() if kind is not None}
    if not kernels or (operators and not seen):
        raise PrecisionMismatch(
            f"{label}: the build log does not show the kernels, so the precision is not proved",
            hint="use a tested version of TensorRT: mmprod doctor",
        )
    lost = [node for node in operators if node not in seen and node not in constant]
    if lost:
        raise PrecisionMismatch(
            f"{label}: no kernel of the engine names {len(lost)} of {len(operators)} heavy "
            f"operators, so their precision is not proved: {_some(lost)}",
            hint="use a tested version of TensorRT: mmprod doctor",
        )
    changed = [
        f"{node} ({operators[node]} -> {kind})"
        for node, kind in seen.items()
        if kind != operators[node]
    ]
    if asked == "fp32":
        changed += [
            f"{k.name} ({' '.join(sorted(r))})" for k in kernels if (r := _reduced(k, tf32))
        ]
    share = sum(kind in wanted for kind in seen.values()) / len(seen) if seen else None
    if changed or (share is not None and share < MOST):
        shown = changed or _named(seen, lambda kind: kind not in wanted)
        raise PrecisionMismatch(
            f"{label}: {asked} was asked, but the engine computes {len(shown)} of "
            f"{len(kernels)} kernels otherwise: {_some(shown)}",
            hint="report it with the ONNX graph: this version of TensorRT changed its precision",
        )
    return PrecisionReport(
        asked=asked,
        operators=len(operators),
        in_graph=dict(Counter(operators.values())),
        in_engine=dict(Counter(seen.values())),
        share=share,
        others=tuple(_named(seen, lambda kind: kind not in wanted)),
        unseen=tuple(node for node in operators if node not in seen),
    )


def _built_as(node: str, kind: str, kernels: Sequence[Kernel]) -> str | None:
    """The datatype in which the engine computes a node that is `kind` in the graph.

    None when no kernel names the node.
    """
    carrying = [kernel for kernel in kernels if node in kernel.nodes]
    heavy = [k for k in carrying if k.type not in _MOVING or _PRODUCT.search(k.name)]
    for kernel in heavy or carrying:
        kinds = _FLOATING.intersection(kernel.weights) or _FLOATING.intersection(kernel.inputs)
        if kind not in kinds:
            return "+".join(sorted(kinds)) or "no float"
    return kind if carrying else None


def _reduced(kernel: Kernel, tf32: bool) -> set[str]:
    """What in a kernel is less than fp32."""
    kinds = {*kernel.inputs, *kernel.weights, *kernel.outputs}
    reduced = set(kinds & _FLOATING) - {"Float"}
    if tf32 or "tf32" in kernel.tactic.lower():
        reduced.add("TF32")
    return reduced


def _named(operators: Mapping[str, str], wrong: Callable[[str], bool]) -> list[str]:
    return [f"{node} ({kind})" for node, kind in operators.items() if wrong(kind)]


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
