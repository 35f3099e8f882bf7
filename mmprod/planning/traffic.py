"""Bytes that one rank sends in one optimizer step.

A ring sends V (N-1)/N bytes per rank for the reduce-scatter or all-gather of V bytes, twice that
for an all-reduce (Rajbhandari et al. 2020, section 7). Which of them DeepSpeed 0.19 uses was
counted: stages 1 and 2 all-reduce whole buckets (use_multi_rank_bucket_allreduce), one and a half
times the paper's volume; stage 2 does so for every micro-batch, stage 1 once; stage 3 gathers a
model of under a billion weights once per micro-batch, a larger one twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmprod.planning.memory import BYTES, FP32, LIVE, Layout
from mmprod.planning.sizes import Sizes

FLAGS = 64
"""bytes of losses and flags that the loop sums per step, about"""


@dataclass(frozen=True)
class Traffic:
    """V bytes of each collective by kind, and how many of them one step starts.

    codebook, discriminator: all-reduces of our own, after the update.
    """

    all_reduce: int
    reduce_scatter: int
    all_gather: int
    codebook: int
    discriminator: int
    calls: int

    def sent(self, world: int) -> int:
        """Bytes that one of `world` ranks sends over the step."""
        twice = self.all_reduce + self.codebook + self.discriminator
        return round((2 * twice + self.reduce_scatter + self.all_gather) * (world - 1) / world)


def traffic_of(sizes: Sizes, layout: Layout) -> Traffic:
    """Collectives of one step; none of them where there is one rank."""
    if layout.world == 1 or layout.stage is None:
        return Traffic(0, 0, 0, 0, 0, 0)
    stage, micro = layout.stage, layout.accumulation
    gradients = weights = BYTES[layout.weights] * sizes.trained
    judge, book = FP32 * sizes.discriminator, FP32 * sizes.counted + FLAGS
    reduced = gathered = scattered = 0
    if stage < 3:
        reduced = gradients * (micro if stage == 2 else 1)
        gathered = weights if stage else 0
    else:
        every = BYTES[layout.weights] * sizes.parameters
        gathered = every * micro * (1 if sizes.parameters < LIVE else 2)
        scattered = gradients * micro
    bucket = BYTES[layout.weights] * max(1, layout.bucket)
    calls = math.ceil((reduced + scattered) / bucket) + math.ceil(gathered / bucket) + 2
    gathered += FP32 * sizes.pooled
    return Traffic(reduced, scattered, gathered, book, judge, calls)
