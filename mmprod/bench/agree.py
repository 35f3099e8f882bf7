"""Whether two subjects compute the same: a comparison of speed is worth nothing otherwise.

Parity says so about the files of a bundle. PyTorch and the host loop are no files of it; they are
held against a graph that passed, on the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec

LEAST_EQUAL = 0.98
"""share of codes, tokens and pixels that are alike. A draw near the border of two codes may fall to
either side; another model would agree by chance only."""
LEAST_COSINE = 0.999
PIXEL_STEPS = 2


def disagreement(
    spec: GraphSpec, ours: Mapping[str, Array], theirs: Mapping[str, Array], *, exact: bool
) -> str:
    """What differs too much, "" for nothing. exact: codes and tokens must all be equal."""
    for tensor in spec.outputs:
        a, b = ours[tensor.name], theirs[tensor.name]
        if a.shape != b.shape:
            return f"{tensor.name} has the shape {a.shape}, not {b.shape}"
        if tensor.dtype == "float32":
            x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            norms = float(np.linalg.norm(x) * np.linalg.norm(y))
            cosine = float(x @ y) / norms if norms else 0.0
            if not cosine >= LEAST_COSINE:  # NaN, too
                return f"{tensor.name}: cosine {cosine:.4f} < {LEAST_COSINE}"
            continue
        near = PIXEL_STEPS if tensor.role == "pixels" else 0
        equal = float((np.abs(a.astype(np.int64) - b.astype(np.int64)) <= near).mean())
        least = 1.0 if exact and tensor.role != "pixels" else LEAST_EQUAL
        if equal < least:
            return f"{tensor.name}: {equal:.2%} alike, {least:.0%} needed"
    return ""
