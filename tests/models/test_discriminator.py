"""The patch discriminator and its losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmprod.models.discriminator import Discriminator, generator_loss, hinge_loss, lecam_loss


@pytest.mark.parametrize(("side", "patches"), [(8, 1), (16, 2), (64, 8)])
def test_logits_lie_on_a_grid_of_an_eighth(side: int, patches: int) -> None:
    x = torch.randn(2, 3, side, side)
    assert Discriminator(8)(x).shape == (2, 1, patches, patches)


def test_it_is_small_and_judges_each_picture_alone() -> None:
    net = Discriminator()
    assert sum(p.numel() for p in net.parameters()) < 3_000_000
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    assert not list(net.buffers())
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-6, rtol=1e-5)


def test_losses_against_their_formulas() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    anchors = torch.tensor([0.5, -0.25])
    assert float(generator_loss(fake)) == pytest.approx(2 / 3)
    assert float(hinge_loss(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    expected = sum((r + 0.25) ** 2 for r in (2, 0.5, -1)) / 3
    expected += sum((f - 0.5) ** 2 for f in (-3, 0, 1)) / 3
    assert float(lecam_loss(real, fake, anchors)) == pytest.approx(expected)
