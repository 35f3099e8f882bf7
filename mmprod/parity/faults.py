"""The sabotage suite: every fault by name, of which kind it is, and how it is done to a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.faults_file import FILE_FAULTS
from mmprod.parity.faults_nodes import FORM_FAULTS, NODE_FAULTS
from mmprod.parity.faults_weights import WEIGHT_FAULTS
from mmprod.parity.sabotage import KINDS, Change, Damage, damage

NUMERIC: dict[str, Change] = {**KINDS, **WEIGHT_FAULTS, **NODE_FAULTS}

MAY_VANISH = frozenset(
    {"zero_row", "add_noise", "drop_bias", "tf32", "missing_cast", "wrong_epsilon", "wrong_scale"}
    | {"round_to_4_bits", "scale_weight"}
)
"""Faults so small that ids or whole levels of colour may not change at all in some graph, and that
a reduced precision may not tell from its own rounding in any.
"""


@dataclass(frozen=True)
class Fault:
    """One fault of the suite. numeric: a valid file with other numbers; structural: another form;
    file: bytes that are not the ones that were listed.
    """

    name: str
    kind: Literal["numeric", "structural", "file"]

    @property
    def may_vanish(self) -> bool:
        return self.name in MAY_VANISH


SUITE: tuple[Fault, ...] = (
    *(Fault(name, "numeric") for name in NUMERIC),
    *(Fault(name, "structural") for name in FORM_FAULTS),
    *(Fault(name, "file") for name in FILE_FAULTS),
)


def find_fault(name: str) -> Fault:
    """Raises ConfigError for a name that is not in the suite."""
    for fault in SUITE:
        if fault.name == name:
            return fault
    names = ", ".join(fault.name for fault in SUITE)
    raise ConfigError(f"unknown fault {name!r}", hint=f"choose from {names}")


def inject(bundle: Bundle, fault: Fault, graph: str, precision: str = "fp32") -> Damage:
    """Do it to a bundle in place. Raises ConfigError when the graph has no target for it."""
    if fault.kind == "file":
        where, text = FILE_FAULTS[fault.name](bundle, graph, precision)
        return Damage(fault.name, graph, precision, where, text)
    return damage(bundle, fault.name, graph, precision, {**NUMERIC, **FORM_FAULTS})
