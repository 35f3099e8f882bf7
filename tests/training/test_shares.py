"""The union of all ranks' shares is the global batch, whatever the world; so are random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprod.data.order import global_batch
from mmprod.training.shares import Shares, mixed_seed


def shares_of(world: int, accumulation: int, step: int = 3):
    return [
        share
        for rank in range(world)
        for share in Shares(7, 24, rank, world, accumulation).of(step, 50, None)
    ]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (3, 4), (4, 2)])
def test_shares_join_to_the_global_batch(world, accumulation):
    parts = shares_of(world, accumulation)
    joined = np.concatenate([part.indices for part in parts])
    assert len(parts) == world * accumulation
    np.testing.assert_array_equal(joined, global_batch(7, 3, 24, 50))


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 4)])
def test_a_sample_meets_the_same_random_numbers_in_every_world(world, accumulation):
    def drawn(parts):
        return torch.cat([p.cut(torch.rand(24, 5, generator=p.generator("mask"))) for p in parts])

    assert torch.equal(drawn(shares_of(world, accumulation)), drawn(shares_of(1, 1)))


def test_random_numbers_differ_by_step_purpose_and_seed():
    seeds = {mixed_seed(s, step, name) for s in (0, 1) for step in (0, 1) for name in "ab"}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
