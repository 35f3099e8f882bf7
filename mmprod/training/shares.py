"""Samples and random numbers of a step: pure functions of (seed, step, place in the batch).

A global batch is cut into `world * accumulation` contiguous shares of equal size. Random numbers
are drawn for the whole global batch and then cut alike, so a sample meets the same numbers
whichever rank trains it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mmprod.data.order import global_batch

Indices = npt.NDArray[np.int64]


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts; near-by parts give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Share:
    """Places [start, stop) of the global batch of `step`; `batch` (B,) holds the sample indices of
    all of it.
    """

    seed: int
    step: int
    batch: Indices
    start: int
    stop: int

    @property
    def indices(self) -> Indices:
        """This share's sample indices."""
        return self.batch[self.start : self.stop]

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator for this step and purpose. Draw for the whole batch, then `cut`."""
        return torch.Generator().manual_seed(mixed_seed(self.seed, self.step, name))

    def cut(self, drawn: torch.Tensor) -> torch.Tensor:
        """This share's rows of what was drawn for the global batch."""
        return drawn[self.start : self.stop]


@dataclass(frozen=True)
class Shares:
    """Cuts global batches for one rank.

    The batch must divide by world * accumulation (checked by the backend).
    """

    seed: int
    batch: int
    rank: int
    world: int
    accumulation: int = 1

    def of(self, step: int, size: int, weights: npt.NDArray[np.floating] | None) -> list[Share]:
        """This rank's shares of the step-th global batch, one per micro-batch, in order."""
        indices = global_batch(self.seed, step, self.batch, size, weights)
        length = self.batch // (self.world * self.accumulation)
        first = self.rank * self.accumulation
        starts = range(first * length, (first + self.accumulation) * length, length)
        return [Share(self.seed, step, indices, start, start + length) for start in starts]
