"""What separates two outputs of one graph: pure functions on NumPy arrays, one per role of tensor.

`find_defect` comes first: an output with a wrong type or shape, no elements, NaN, Inf or ids out
of range cannot be compared and always fails, whatever the limits. `compare` then measures; `Stats`
of many cases merge into one, so memory stays flat however many cases run. `Stats.figures` are
plain numbers; which are good enough is said in limits.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Role, Tensor

PSNR_CAP = 100.0
"""dB reported for equal pictures, so that every figure is a finite number."""

CHUNK = 1 << 21
"""Logits looked at together, so that the float64 copies stay below 20 MB each."""

TIES, CHANGE = "ties", "change"
"""What ties.py adds to the sums and peaks of ids, where the reference knows how near it chose."""
FIRST_STEP, MARGIN = "first_step", "margin"

Index = tuple[int, ...]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """One spot: the case, the index into the output (sample first), both values there."""

    case: str
    index: Index
    reference: float
    candidate: float

    def __str__(self) -> str:
        at = ", ".join(map(str, self.index))
        return f"{self.case} [{at}]: {self.reference:.6g} became {self.candidate:.6g}"


@dataclass(frozen=True)
class Stats:
    """Measurements of one output over some cases. `sums` add up, `peaks` keep the largest."""

    role: Role
    sums: Mapping[str, float]
    peaks: Mapping[str, float] = field(default_factory=dict)
    first: Place | None = None
    """Where the outputs part for the first time, in the order of cases, samples and positions."""
    worst: Place | None = None
    severity: float = 0.0
    """How bad `worst` is, among places of the same role."""

    def merge(self, later: Stats) -> Stats:
        """These measurements, then `later` ones of the same role. What only one knows is lost."""
        if later.role != self.role:
            raise ValueError(f"cannot merge {later.role} into {self.role}")
        worse = later if later.severity > self.severity else self
        return Stats(
            self.role,
            {k: value + later.sums[k] for k, value in self.sums.items() if k in later.sums},
            {k: max(value, later.peaks[k]) for k, value in self.peaks.items() if k in later.peaks},
            self.first or later.first,
            worse.worst,
            worse.severity,
        )

    def figures(self) -> dict[str, float]:
        """The numbers to report, by name; see `FIGURES`."""
        return _FIGURES[self.role](self)


FIGURES = {
    "max_level": "largest difference of a colour value, levels of 255",
    "differing": "share of colour values that differ",
    "psnr": f"peak signal to noise ratio of the pictures, dB, at most {PSNR_CAP:g}",
    "agreement": "share of equal ids",
    "settled": "share of ids that are equal or tied: the reference would have chosen the other id "
    "after a relative change of its features no larger than what counts as a tie",
    CHANGE: "largest relative change of the reference's features that a differing id would have "
    "needed; 1 where that is not known",
    "differing_samples": "samples with at least one differing id",
    FIRST_STEP: "step, from 1, in which the first such sample of a sampler drew its first other id",
    MARGIN: "how far the draw there was from the candidate's id, as a share of the distribution",
    "max_abs": "largest absolute difference",
    "top1": "share of positions with the same most likely id",
    "top1_regret": "largest loss of reference logit by following the candidate's most likely id",
    "kl_mean": "mean Kullback-Leibler divergence of the distributions, nats",
    "kl_max": "largest Kullback-Leibler divergence of a position, nats",
    "cosine": "smallest cosine between the vectors of a sample",
}


def find_defect(tensor: Tensor, sizes: Mapping[str, int], reference: Any, candidate: Any) -> str:
    """Why the two cannot be compared as `tensor` with dimensions of these `sizes`; "" when they
    can.
    """
    shape = tensor.sizes(sizes)
    sides = (("reference", reference), ("candidate", candidate))
    for find in (_wrong_form, _wrong_values):
        for side, array in sides:
            defect = find(tensor, shape, array)
            if defect:
                return f"{side}: {defect}"
    return ""


def compare(tensor: Tensor, reference: Array, candidate: Array, case: str) -> Stats:
    """Measure how far `candidate` is from `reference`; both must be free of defects. `case` names
    them.

    Raises ValueError for a role that is no output of any graph (noise, mask).
    """
    if tensor.role not in _COMPARATORS:
        raise ValueError(f"outputs of role {tensor.role!r} cannot be compared")
    return _COMPARATORS[tensor.role](tensor.role, reference, candidate, case)


def _wrong_form(tensor: Tensor, shape: Index, array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return f"{tensor.name} is {type(array).__name__}, not an array"
    if array.dtype != np.dtype(tensor.dtype):
        return f"{tensor.name} is {array.dtype}, expected {tensor.dtype}"
    if array.shape != shape:
        return f"{tensor.name} has shape {array.shape}, expected {shape}"
    return f"{tensor.name} is empty" if array.size == 0 else ""


def _wrong_values(tensor: Tensor, shape: Index, array: Array) -> str:
    if array.dtype.kind == "f":
        for name, bad in (("NaN", np.isnan(array)), ("Inf", np.isinf(array))):
            if bad.any():
                at = _unravel(int(bad.argmax()), shape)
                return (
                    f"{tensor.name} has {name} in {int(bad.sum())} of {bad.size} places, first {at}"
                )
        if tensor.role == "embedding" and not array.any(axis=-1).all():
            return f"{tensor.name} has a vector of zeros, which points nowhere"
    elif tensor.below and (array.min() < 0 or array.max() >= tensor.below):
        return f"{tensor.name} lies in {array.min()}..{array.max()}, outside 0..{tensor.below - 1}"
    return ""


def _compare_pixels(role: Role, reference: Array, candidate: Array, case: str) -> Stats:
    gap = np.abs(reference.astype(np.int16) - candidate.astype(np.int16))
    different = gap > 0
    largest = float(gap.max())
    sums = {
        "count": float(gap.size),
        "differing": float(different.sum()),
        "squared": float(np.square(gap, dtype=np.int64).sum()),
    }
    return Stats(
        role,
        sums,
        {"level": largest},
        _place(case, different, reference, candidate),
        _place(case, gap == largest, reference, candidate) if largest else None,
        largest,
    )


def _compare_ids(role: Role, reference: Array, candidate: Array, case: str) -> Stats:
    """int32 (B, N) each. The worst place is where the sample with most differing ids first
    differs. No difference is taken for a tie here; ties.py adds what it knows.
    """
    different = reference != candidate
    per_sample = different.reshape(len(different), -1).sum(axis=1)
    in_worst = different & (np.arange(len(different)) == per_sample.argmax())[:, None]
    sums = {
        "count": float(different.size),
        "differing": float(per_sample.sum()),
        "samples": float((per_sample > 0).sum()),
    }
    return Stats(
        role,
        sums,
        {},
        _place(case, different, reference, candidate),
        _place(case, in_worst, reference, candidate),
        float(per_sample.max()),
    )


def _compare_logits(role: Role, reference: Array, candidate: Array, case: str) -> Stats:
    """float32 (B, N, K) each, in chunks of positions."""
    width = reference.shape[-1]
    rows = reference.reshape(-1, width), candidate.reshape(-1, width)
    step = max(1, CHUNK // width)
    sums = {"count": float(len(rows[0])), "same": 0.0, "kl": 0.0}
    peaks = {"abs": 0.0, "regret": 0.0, "kl": 0.0}
    worst: Place | None = None
    for start in range(0, len(rows[0]), step):
        wanted, got = (array[start : start + step].astype(np.float64) for array in rows)
        gap = np.abs(wanted - got)
        at = int(gap.argmax())
        if gap.flat[at] > peaks["abs"]:
            index = _unravel(start * width + at, reference.shape)
            worst = Place(case, index, float(wanted.flat[at]), float(got.flat[at]))
        regret = (
            wanted.max(axis=1) - np.take_along_axis(wanted, got.argmax(axis=1)[:, None], 1)[:, 0]
        )
        kl = divergence(wanted, got)
        sums["same"] += float((wanted.argmax(axis=1) == got.argmax(axis=1)).sum())
        sums["kl"] += float(kl.sum())
        for key, value in (("abs", gap), ("regret", regret), ("kl", kl)):
            peaks[key] = max(peaks[key], float(value.max()))
    return Stats(role, sums, peaks, None, worst, peaks["abs"])


def _compare_vectors(role: Role, reference: Array, candidate: Array, case: str) -> Stats:
    """float32 (B, E) each, no vector of zeros. The peak `turn` is 1 - cosine, exact near 0."""
    wanted, got = reference.astype(np.float64), candidate.astype(np.float64)
    directions = [a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (wanted, got)]
    turn = 0.5 * np.square(directions[0] - directions[1]).sum(axis=-1)
    gap = np.abs(wanted - got)
    peaks = {"turn": float(turn.max()), "abs": float(gap.max())}
    worst = _place(case, gap == gap.max(), wanted, got) if gap.any() else None
    return Stats(role, {"count": float(len(turn))}, peaks, None, worst, peaks["abs"])


def divergence(wanted: Floats, got: Floats) -> Floats:
    """KL(softmax(wanted) || softmax(got)) per row, nats: float64 (R, K) twice -> (R,), never
    negative.
    """
    logs = [a - a.max(axis=1, keepdims=True) for a in (wanted, got)]
    logs = [a - np.log(np.exp(a).sum(axis=1, keepdims=True)) for a in logs]
    kl: Floats = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    return np.maximum(kl, 0.0)


def _place(case: str, marked: Array, reference: Array, candidate: Array) -> Place | None:
    """The first marked element, or None."""
    if not marked.any():
        return None
    index = _unravel(int(marked.argmax()), marked.shape)
    return Place(case, index, float(reference[index]), float(candidate[index]))


def _unravel(flat: int, shape: Index) -> Index:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _pixel_figures(stats: Stats) -> dict[str, float]:
    mean = stats.sums["squared"] / stats.sums["count"]
    psnr = PSNR_CAP if mean == 0 else min(PSNR_CAP, 10 * math.log10(255**2 / mean))
    differing = stats.sums["differing"] / stats.sums["count"]
    return {"max_level": stats.peaks["level"], "differing": differing, "psnr": psnr}


def _id_figures(stats: Stats) -> dict[str, float]:
    agreement = 1 - stats.sums["differing"] / stats.sums["count"]
    figures = {"agreement": agreement, "differing_samples": stats.sums["samples"]}
    if TIES in stats.sums:
        clear = stats.sums["differing"] - stats.sums[TIES]
        figures["settled"] = 1 - clear / stats.sums["count"]
        figures[CHANGE] = stats.peaks[CHANGE]
    return figures


def _logit_figures(stats: Stats) -> dict[str, float]:
    count = stats.sums["count"]
    return {
        "max_abs": stats.peaks["abs"],
        "top1": stats.sums["same"] / count,
        "top1_regret": stats.peaks["regret"],
        "kl_mean": stats.sums["kl"] / count,
        "kl_max": stats.peaks["kl"],
    }


def _vector_figures(stats: Stats) -> dict[str, float]:
    return {"cosine": 1 - stats.peaks["turn"], "max_abs": stats.peaks["abs"]}


_COMPARATORS: dict[str, Callable[[Role, Array, Array, str], Stats]] = {
    "pixels": _compare_pixels,
    "codes": _compare_ids,
    "tokens": _compare_ids,
    "logits": _compare_logits,
    "embedding": _compare_vectors,
}

_FIGURES: dict[str, Callable[[Stats], dict[str, float]]] = {
    "pixels": _pixel_figures,
    "codes": _id_figures,
    "tokens": _id_figures,
    "logits": _logit_figures,
    "embedding": _vector_figures,
}
