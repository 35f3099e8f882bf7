"""Which measurements a graph's outputs give, and the limits of each.

A plain graph gives one per output. A sampler draws ids and then shows them: its ids have the limits
of free-running samplers; what follows from them (pixels) is reported over all samples, but judged
only over the samples whose ids are all equal, there by the limits of a plain graph. Otherwise one
moved draw would hide, or be taken for, a fault of the decoder. Without any such sample nothing is
known of the decoder, and that is no pass (`unjudged`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec, Tensor
from mmprod.parity.cases import Case
from mmprod.parity.compare import Place, Stats, compare, find_defect
from mmprod.parity.limits import Kind, check, limits_for
from mmprod.parity.report import Output

_IDS = ("codes", "tokens")


@dataclass(frozen=True)
class Measure:
    """One measurement of an output. `limits`: the kind of limits it is held to, None for none.

    `equal`: outputs that must be equal in a sample for it to count.
    """

    name: str
    tensor: Tensor
    limits: Kind | None
    equal: tuple[str, ...] = ()


def measures_of(spec: GraphSpec) -> list[Measure]:
    """The measurements of a graph, in the order of its outputs."""
    ids = tuple(tensor.name for tensor in spec.outputs if tensor.role in _IDS)
    found: list[Measure] = []
    for tensor in spec.outputs:
        if not spec.loop_steps or tensor.role in _IDS:
            found.append(Measure(tensor.name, tensor, "sampler" if spec.loop_steps else "plain"))
        else:
            name = f"{tensor.name} of equal {' and '.join(ids)}"
            found.append(Measure(tensor.name, tensor, None))
            found.append(Measure(name, tensor, "plain", ids))
    return found


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
    spec: GraphSpec, case: Case, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> dict[str, Stats]:
    """Measurements of one case by name. A measure for which no sample counts is left out."""
    found: dict[str, Stats] = {}
    for measure in measures_of(spec):
        name = measure.tensor.name
        wanted, given = expected[name], got[name]
        if not measure.equal:
            found[measure.name] = compare(measure.tensor, wanted, given, case.name)
            continue
        same = [(expected[i] == got[i]).all(axis=1) for i in measure.equal]
        rows = np.flatnonzero(np.logical_and.reduce(same))
        if rows.size:
            stats = compare(measure.tensor, wanted[rows], given[rows], case.name)
            found[measure.name] = replace(
                stats, first=_back(stats.first, rows), worst=_back(stats.worst, rows)
            )
    return found


def judge_outputs(
    spec: GraphSpec, stats: Mapping[str, Stats], precision: str, samples: int
) -> tuple[Output, ...]:
    """Hold the measurements over all cases against their limits."""
    outputs: list[Output] = []
    for measure in measures_of(spec):
        found = stats.get(measure.name)
        if found is None:
            continue
        role, figures = measure.tensor.role, found.figures()
        limits = limits_for(role, precision, measure.limits) if measure.limits else ()
        checks = tuple(check(limit, figures[limit.figure], samples) for limit in limits)
        outputs.append(Output(measure.name, role, figures, checks, found.first, found.worst))
    return tuple(outputs)


def unjudged(spec: GraphSpec, stats: Mapping[str, Stats]) -> list[str]:
    """Why each measure that has limits, but for which no sample counted, cannot be judged."""
    return [
        f"{measure.name}: nothing to judge, no sample has equal {' and '.join(measure.equal)}"
        if measure.equal
        else f"{measure.name}: nothing to judge"
        for measure in measures_of(spec)
        if measure.limits and measure.name not in stats
    ]


def _back(place: Place | None, rows: npt.NDArray[np.intp]) -> Place | None:
    """The place with the sample's number in the whole batch."""
    if place is None:
        return None
    return replace(place, index=(int(rows[place.index[0]]), *place.index[1:]))
