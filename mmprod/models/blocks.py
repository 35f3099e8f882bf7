"""Building blocks of the codec: convolutional residual blocks (ResNet, He et al. 2016,
pre-activation) and resampling.

GroupNorm (Wu and He 2018) with SiLU; strided 3x3 down, nearest x2 + 3x3 up. Transposed convolutions
are left out on purpose: they leave checkerboards and TensorRT refuses them in bf16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmprod.models.attention import attend
from mmprod.models.group_norm import GroupNorm


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with at most 32 groups of at least 4 channels."""
    groups = next(
        g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1
    )
    return GroupNorm(groups, channels, eps=1e-5)


class ResidualBlock(nn.Module):
    """x (B, C, h, w) -> (B, C', h, w): norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input (1x1 when
    widths differ).
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out = out_channels or channels
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return torch.add(self.skip(x), y)


class AttentionBlock(nn.Module):
    """Single-head self-attention over latent positions, x (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        mixed = rearrange(attend(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return torch.add(x, self.out(mixed))


class Downsample(nn.Module):
    """x (B, C, h, w) -> (B, C, h/2, w/2) by a strided 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """x (B, C, h, w) -> (B, C, 2h, 2w) by nearest neighbour and a 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
