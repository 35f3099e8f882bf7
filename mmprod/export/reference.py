"""Stored reference inputs and outputs: what PyTorch says, to compare any backend with later.

One npz file per graph, no pickle: keys `b3/in/tokens`, `b3/out/pixels` for batch 3; for codes also
`b3/rivals/codes` and `b3/changes/codes`, what was nearly chosen (`graphs.runner.Rivals`). Inputs
are real samples where there are any, else drawn by `graphs.runner.example_inputs`; noise is always
drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmprod.graphs.runner import Array, Ranked, Runner, example_inputs
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import atomic_path

BATCHES = (1, 3)
SEED = 2024
MASKED = 0.5
"""share of places that are masked where a graph takes partly masked codes or tokens"""


def write_reference(
    path: Path,
    spec: GraphSpec,
    runner: Runner,
    samples: Mapping[str, Array],
    ids: Mapping[str, int],
) -> None:
    """Run `runner` on the reference inputs (see there) and store both, atomically."""
    arrays: dict[str, Array] = {}
    for batch in BATCHES:
        inputs = reference_inputs(spec, batch, samples, ids)
        arrays |= {f"b{batch}/in/{name}": value for name, value in inputs.items()}
        arrays |= {f"b{batch}/out/{name}": value for name, value in runner(inputs).items()}
        near = runner.rivals(inputs) if isinstance(runner, Ranked) else {}
        for name, rivals in near.items():
            arrays |= {f"b{batch}/rivals/{name}": rivals.ids}
            arrays |= {f"b{batch}/changes/{name}": rivals.changes}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def reference_inputs(
    spec: GraphSpec, batch: int, samples: Mapping[str, Array], ids: Mapping[str, int]
) -> dict[str, Array]:
    """Inputs of one size.

    `samples`: real values by role (pixels, tokens, codes), any number; batch 1 takes the first,
    batch 3 the next three, round and round. `ids`: how many ids a role has without its mask id;
    where an input allows the mask id too, half of the places are masked.
    """
    inputs = example_inputs(spec, batch, SEED)
    start = sum(size for size in BATCHES if size < batch)
    for index, tensor in enumerate(spec.inputs):
        real = samples.get(tensor.role)
        if real is None or not len(real):
            continue
        values = real[np.arange(start, start + batch) % len(real)]
        mask_id = ids.get(tensor.role, tensor.below)
        if mask_id < tensor.below:
            rng = np.random.Generator(np.random.Philox(key=[SEED + batch, index]))
            values = np.where(rng.random(values.shape) < MASKED, mask_id, values)
        inputs[tensor.name] = np.ascontiguousarray(values, dtype=real.dtype)
    return inputs
