"""The global order of samples as a pure function of (seed, epoch): no sampler state, any number of
ranks.

Step s takes the samples at positions [s*B, (s+1)*B) of the endless sequence epoch 0, epoch 1, ...;
how ranks share that batch is the trainer's business. So a run can stop, resume and change its world
size, and still sees the same samples in the same steps. Only raw 64-bit draws of the Philox
generator are used (their values are fixed by the algorithm), never `Generator.permutation`, whose
result NumPy may change between versions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmprod.errors import ConfigError


def epoch_order(
    seed: int, epoch: int, size: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """The sample indices of one epoch, read-only (size,) int64 in [0, size).

    Without `weights` a permutation. With `weights` (size,) >= 0: systematic resampling, so sample i
    occurs floor or ceil of size * weights[i] / sum(weights) times, then shuffled. Raises
    ConfigError for unusable arguments.
    """
    if size < 1 or epoch < 0 or seed < 0:
        raise ConfigError(
            f"no order for size={size}, epoch={epoch}, seed={seed}",
            hint="a data set needs at least one sample; epoch and seed start at 0",
        )
    if weights is None:
        return _epoch_order(seed, epoch, size, None)
    values = np.ascontiguousarray(weights, np.float64)
    if (
        values.shape != (size,)
        or not np.isfinite(values).all()
        or (values < 0).any()
        or values.sum() <= 0
    ):
        raise ConfigError(
            f"weights must be {size} finite numbers >= 0, at least one above 0",
            hint="rebuild the data set with `mmprod data prepare`",
        )
    return _epoch_order(seed, epoch, size, values.tobytes())


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int, weights: bytes | None) -> NDArray[np.int64]:
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size + 1)
    order = np.argsort(raw[:size], kind="stable").astype(np.int64)
    if weights is not None:
        bounds = np.cumsum(np.frombuffer(weights, np.float64))
        start = float(raw[size] >> np.uint64(11)) * 2.0**-53
        positions = (np.arange(size) + start) * (bounds[-1] / size)
        drawn = np.searchsorted(bounds, positions, side="right")
        last = np.flatnonzero(np.diff(bounds, prepend=0.0))[-1]
        order = np.minimum(drawn, last).astype(np.int64)[order]
    order.flags.writeable = False
    return order


def global_batch(
    seed: int, step: int, batch: int, size: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """The sample indices of the `step`-th global batch over all ranks, (batch,) int64.

    Crosses epoch borders.
    """
    if step < 0 or batch < 1:
        raise ConfigError(
            f"no batch for step={step}, batch={batch}", hint="step >= 0 and batch >= 1"
        )
    parts: list[NDArray[np.int64]] = []
    position, end = step * batch, (step + 1) * batch
    while position < end:
        epoch, offset = divmod(position, size)
        part = epoch_order(seed, epoch, size, weights)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)
