"""Bytes and files of one checkpoint.

Format 3 holds four fp32 numbers of each parameter that trains (weight, two moments, average),
whatever the ZeRO stage; Muon's matrices have one moment less. Beside them the buffers, the frozen
weights and the discriminator with its moments.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmprod.planning.memory import FP32
from mmprod.planning.sizes import Sizes


@dataclass(frozen=True)
class Storage:
    """One checkpoint on disk: `bytes` without headers and the manifest (some kB)."""

    bytes: int
    files: int


def storage_of(sizes: Sizes, stage: int | None, world: int) -> Storage:
    """Written by `world` ranks under a ZeRO stage; None: one process without DeepSpeed."""
    total = 4 * FP32 * sizes.trained + sizes.saved_buffer_bytes
    total += FP32 * sizes.frozen + 3 * FP32 * sizes.discriminator
    if stage is None:
        total -= FP32 * sizes.one_moment
    writers = world if stage else 1
    return Storage(total, writers + 2 + bool(sizes.frozen) + bool(sizes.discriminator))
