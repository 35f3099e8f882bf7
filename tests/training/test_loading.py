"""Batches made ahead: the same ones in the same order, from any step on, and errors where they
belong.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from mmprod.training.loading import AHEAD, Loader
from mmprod.training.shares import Share, Shares
from tests.training.tiny import codec_task, fusion_task, tiny_config


def loaded(task, shares, first, last):
    with Loader(task, shares, first, last) as loader:
        return {step: list(loader.step(step)) for step in range(first, last)}


@pytest.mark.parametrize("build", [codec_task, fusion_task])
def test_batches_are_what_the_task_makes_of_each_share(build) -> None:
    task = build(tiny_config())
    shares = Shares(0, 16, rank=1, world=2, accumulation=2)
    found = loaded(task, shares, 0, 5)
    for step, parts in found.items():
        wanted = shares.of(step, task.size, task.weights)
        assert len(parts) == len(wanted) == 2
        for part, share in zip(parts, wanted, strict=True):
            assert np.array_equal(part.share.indices, share.indices)
            assert all(map(torch.equal, part.batch, task.batch(share)))


def test_a_resumed_loader_goes_on_with_the_same_batches() -> None:
    task, shares = fusion_task(tiny_config()), Shares(3, 16, 0, 1)
    whole, rest = loaded(task, shares, 0, 6), loaded(task, shares, 4, 6)
    for step in (4, 5):
        for a, b in zip(whole[step], rest[step], strict=True):
            assert all(map(torch.equal, a.batch, b.batch))


class Slow:
    """Counts what was made; makes nothing until it is let go."""

    size, weights = 64, None

    def __init__(self) -> None:
        self.made: list[int] = []
        self.go = threading.Event()

    def batch(self, share: Share) -> tuple[torch.Tensor, ...]:
        self.go.wait(10)
        if share.step == 3:
            raise ValueError("picture 3 is broken")
        self.made.append(share.step)
        return (torch.zeros(1),)


def test_it_works_ahead_but_not_far_and_says_how_long_it_waited() -> None:
    task = Slow()
    with Loader(task, Shares(0, 4, 0, 1), 0, 100) as loader:
        threading.Timer(0.2, task.go.set).start()
        list(loader.step(0))
        assert loader.waited() > 0.1
        assert loader.waited() == 0
        list(loader.step(1))
        assert max(task.made) <= 1 + AHEAD


def test_an_error_is_raised_where_its_batch_is_taken() -> None:
    task = Slow()
    task.go.set()
    with Loader(task, Shares(0, 4, 0, 1), 0, 100) as loader:
        for step in range(3):
            assert list(loader.step(step))
        with pytest.raises(ValueError, match="picture 3"):
            list(loader.step(3))
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_a_step_out_of_order_is_a_bug() -> None:
    task = Slow()
    task.go.set()
    with (
        Loader(task, Shares(0, 4, 0, 1), 0, 9) as loader,
        pytest.raises(ValueError, match="step 5"),
    ):
        list(loader.step(5))
