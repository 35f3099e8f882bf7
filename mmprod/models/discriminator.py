"""Patch discriminator for the codec's adversarial term, and its losses.

PatchGAN (Isola et al. 2017): a small convolutional net that judges overlapping patches, so it
works at any picture size. Hinge losses (Lim and Ye 2017). LeCAM (Tseng et al. 2021, eq. 3) keeps
its outputs near what they were on average, which helps with little data. GroupNorm in place of
BatchNorm: a judgement depends on one picture alone, so cutting the batch changes nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.models.blocks import norm

CHANNELS = 64
SMALLEST = 8
"""smallest side of a picture: three halvings"""


class Discriminator(nn.Module):
    """x (B, 3, H, W) in [-1, 1] -> logits (B, 1, H/8, W/8), positive where the patch looks real.

    3 -4x4/2-> C -4x4/2-> 2C -4x4/2-> 4C -3x3-> 8C -3x3-> 1, with C = 64: 1.8 million weights; a
    patch sees 54 x 54 pixels.
    """

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), _activation()]
        current = channels
        for _ in range(2):
            layers += [nn.Conv2d(current, 2 * current, 4, stride=2, padding=1), norm(2 * current)]
            layers.append(_activation())
            current *= 2
        layers += [nn.Conv2d(current, 2 * current, 3, padding=1), norm(2 * current), _activation()]
        layers.append(nn.Conv2d(2 * current, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of width 0.02 (DCGAN, Radford et al. 2016), no bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits.float()


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.2)


def generator_loss(fake: Tensor) -> Tensor:
    """Logits of restored pictures -> scalar that falls as they look more real."""
    return -fake.mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logits -> scalar >= 0; 0 when every real patch is above 1 and every restored one below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """Logits, anchors (2,) = moving averages of the real and the fake logit -> scalar >= 0.

    Each kind is drawn towards the other kind's average.
    """
    return (real - anchors[1]).square().mean() + (fake - anchors[0]).square().mean()
