"""The contrastive loss over real ranks is that of one process, gradients too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.test_contrast import by_hand, inputs
from tests.training.ranks import launch

BATCH = 24


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_in_a_ring_equal_one_process(tmp_path: Path, world: int) -> None:
    image, text, seen, seen_text, scale, bias = inputs(BATCH)
    whole = by_hand(image, text, seen, seen_text, scale, bias)
    expected = torch.autograd.grad(whole, (image, text, scale, bias))
    program = Path(__file__).with_name("ring_ranks.py")
    ranks = launch(tmp_path, {"batch": BATCH}, world, program=program)
    loss = sum(rank["loss"] for rank in ranks) / world
    assert loss == pytest.approx(float(whole.detach()), abs=1e-6)
    for place, gradient in enumerate(expected):  # ranks hold zeros for the shares of others
        mean = sum(torch.tensor(rank["gradients"][place]) for rank in ranks) / world
        torch.testing.assert_close(mean, gradient, atol=1e-6, rtol=0)
