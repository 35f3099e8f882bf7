"""Which measurements a graph's outputs give, and the limits of each.

A plain graph gives one per output. A sampler draws ids and then shows them: its ids have the limits
of free-running samplers; what follows from them (pixels) is reported over all samples, but judged
only over the samples whose ids are all equal, there by the limits of a plain graph. Otherwise one
moved draw would hide, or be taken for, a fault of the decoder. Without any such sample nothing is
known of the decoder, and that is no pass (`unjudged`).

Below fp32 draws move, and on a grid of many positions no sample may keep all its ids. There the
pixels are held against what the reference shows for the very codes that the candidate drew
(decoder.py), as long as there is a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array, Rivals
from mmprod.graphs.spec import GraphSpec, Tensor
from mmprod.parity.cases import Case
from mmprod.parity.compare import TIES, Place, Stats, compare, find_defect
from mmprod.parity.heat import Heat, heat_of
from mmprod.parity.limits import Kind, Limit, check, kind_of, limits_for
from mmprod.parity.report import Output
from mmprod.parity.ties import settle

IDS = ("codes", "tokens")
_SHOWN = " of its own codes"


@dataclass(frozen=True)
class Measure:
    """One measurement of an output. `limits`: the kind of limits it is held to, None for none.

    `equal`: outputs that must be equal in a sample for it to count.
    """

    name: str
    tensor: Tensor
    limits: Kind | None
    equal: tuple[str, ...] = ()
    shown: bool = False
    """Held against what the reference shows for the codes that the candidate drew."""


def measures_of(spec: GraphSpec, shown: bool = False) -> list[Measure]:
    """The measurements of a graph, in the order of its outputs. `shown`: those of a sampler whose
    pixels are held against the reference's of the same codes.
    """
    ids = tuple(tensor.name for tensor in spec.outputs if tensor.role in IDS)
    found: list[Measure] = []
    for tensor in spec.outputs:
        if not spec.loop_steps or tensor.role in IDS:
            found.append(Measure(tensor.name, tensor, _kind(spec, tensor)))
        else:
            name = f"{tensor.name} of equal {' and '.join(ids)}"
            found.append(Measure(tensor.name, tensor, None))
            if shown:
                found.append(Measure(f"{tensor.name}{_SHOWN}", tensor, "plain", shown=True))
            else:
                found.append(Measure(name, tensor, "plain", ids))
    return found


def _kind(spec: GraphSpec, tensor: Tensor) -> Kind:
    if not spec.loop_steps:
        return "plain"
    with_picture = any(other.role == "codes" for other in spec.outputs)
    return "joint" if tensor.role == "tokens" and with_picture else "sampler"


def defect_of(
    spec: GraphSpec, case: Case, expected: Mapping[str, Any], got: Mapping[str, Any]
) -> str:
    """Why these outputs cannot be compared; "" when they can."""
    names = sorted(tensor.name for tensor in spec.outputs)
    for side, found in (("reference", expected), ("candidate", got)):
        if sorted(found) != names:
            return f"{side}: outputs are {sorted(found)}, expected {names}"
    defects = (find_defect(t, case.sizes, expected[t.name], got[t.name]) for t in spec.outputs)
    return next(filter(None, defects), "")


def measure_case(
    spec: GraphSpec,
    case: Case,
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    rivals: Mapping[str, Rivals] | None = None,
    tie: float = 0.0,
) -> dict[str, Stats]:
    """Measurements of one case by name. A measure for which no sample counts is left out.

    `rivals`: what the reference nearly chose, by output; `tie`: what is a tie (see ties.py).
    """
    found: dict[str, Stats] = {}
    for measure in measures_of(spec):
        name = measure.tensor.name
        wanted, given = expected[name], got[name]
        if not measure.equal:
            stats = compare(measure.tensor, wanted, given, case.name)
            near = (rivals or {}).get(name)
            found[measure.name] = settle(stats, wanted, given, near, tie) if near else stats
            continue
        same = [(expected[i] == got[i]).all(axis=1) for i in measure.equal]
        rows = np.flatnonzero(np.logical_and.reduce(same))
        if rows.size:
            stats = compare(measure.tensor, wanted[rows], given[rows], case.name)
            found[measure.name] = replace(
                stats, first=_back(stats.first, rows), worst=_back(stats.worst, rows)
            )
    return found


def measure_shown(
    spec: GraphSpec, case: Case, shown: Mapping[str, Array], got: Mapping[str, Array]
) -> dict[str, Stats]:
    """The pixels of a sampler against those that the reference shows for the codes it drew."""
    return {
        measure.name: compare(
            measure.tensor, shown[measure.tensor.name], got[measure.tensor.name], case.name
        )
        for measure in measures_of(spec, shown=True)
        if measure.shown
    }


def heat_case(
    spec: GraphSpec, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> dict[str, Heat]:
    """Where each output of one case differs."""
    return {t.name: heat_of(t.role, expected[t.name], got[t.name]) for t in spec.outputs}


def judge_outputs(
    spec: GraphSpec,
    stats: Mapping[str, Stats],
    precision: str,
    samples: int,
    heats: Mapping[str, Heat] | None = None,
    shown: bool = False,
) -> tuple[Output, ...]:
    """Hold the measurements over all cases against their limits. `shown`: see `measures_of`."""
    outputs: list[Output] = []
    for measure in measures_of(spec, shown):
        found = stats.get(measure.name)
        if found is None:
            continue
        role, figures = measure.tensor.role, found.figures()
        limits = _limits(measure, precision, TIES in found.sums)
        checks = tuple(check(limit, figures[limit.figure], samples) for limit in limits)
        heat = (heats or {}).get(measure.name)
        outputs.append(Output(measure.name, role, figures, checks, found.first, found.worst, heat))
    return tuple(outputs)


def _limits(measure: Measure, precision: str, ranked: bool) -> tuple[Limit, ...]:
    if measure.limits is None:
        return ()
    role = measure.tensor.role
    return limits_for(role, precision, kind_of(measure.limits, role, precision, ranked))


def unjudged(spec: GraphSpec, stats: Mapping[str, Stats], shown: bool = False) -> list[str]:
    """Why each measure that has limits, but for which no sample counted, cannot be judged."""
    return [
        f"{measure.name}: nothing to judge, no sample has equal {' and '.join(measure.equal)}"
        if measure.equal
        else f"{measure.name}: nothing to judge"
        for measure in measures_of(spec, shown)
        if measure.limits and measure.name not in stats
    ]


def _back(place: Place | None, rows: npt.NDArray[np.intp]) -> Place | None:
    """The place with the sample's number in the whole batch."""
    if place is None:
        return None
    return replace(place, index=(int(rows[place.index[0]]), *place.index[1:]))
