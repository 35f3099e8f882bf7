"""Where outputs differ, kept small enough for a page: per case one line over the positions of an
output, or one picture of all cases; and the worst sample's two pictures.

Nothing here is judged; a verdict rests on compare.py alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Role

LINES = 64
"""cases kept one by one; what comes later is put into the last line, by its maximum"""
WIDTH = 256
"""positions across at most; neighbours beyond it share a place, by their maximum"""

Map = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

UNITS = {
    "pixels": "largest difference at a place, levels of 255",
    "codes": "share of samples whose ids differ at a position",
    "tokens": "share of samples whose ids differ at a position",
    "logits": "largest difference of a logit at a position",
    "embedding": "largest difference of a component",
}


@dataclass(frozen=True)
class Heat:
    """Differences of one output. `values`: (cases, positions), or (H, W) over all cases for
    pixels. `pair`: reference and candidate of the sample that is farthest off, pictures only.
    """

    values: Map
    pair: tuple[Pixels, Pixels] | None = None
    severity: float = 0.0

    def merge(self, later: Heat) -> Heat:
        """These followed by `later` ones of the same output."""
        worse = later if later.severity > self.severity else self
        if self.pair is not None:
            values = np.maximum(self.values, later.values)
        else:
            values = np.concatenate([self.values, later.values])
            if len(values) > LINES:
                last = values[LINES - 1 :].max(axis=0, keepdims=True)
                values = np.concatenate([values[: LINES - 1], last])
        return Heat(values, worse.pair, worse.severity)


def heat_of(role: Role, reference: Array, candidate: Array) -> Heat:
    """Differences of one case; both arrays free of defects, shapes as in `compare`."""
    if role == "pixels":
        gap = np.abs(reference.astype(np.int16) - candidate.astype(np.int16)).max(axis=3)
        worst = int(gap.reshape(len(gap), -1).max(axis=1).argmax())
        pair = (reference[worst].copy(), candidate[worst].copy())
        return Heat(gap.max(axis=0).astype(np.float32), pair, float(gap.max()))
    if role in ("codes", "tokens"):
        line = (reference != candidate).mean(axis=0)
    else:
        gap = np.abs(reference.astype(np.float32) - candidate.astype(np.float32))
        line = gap.max(axis=tuple(i for i in range(gap.ndim) if i != 1))
    return Heat(_narrow(line.astype(np.float32))[None], None, float(line.max()))


def _narrow(line: Map) -> Map:
    """At most WIDTH places."""
    if len(line) <= WIDTH:
        return line
    starts = np.linspace(0, len(line), WIDTH, endpoint=False).astype(np.intp)
    found: Map = np.maximum.reduceat(line, starts)
    return found
