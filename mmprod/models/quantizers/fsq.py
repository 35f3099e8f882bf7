"""Finite scalar quantization: every channel is bounded and rounded to a few levels.

Source: Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made simple" (sec. 3.1 and
appendix A.1). No codebook is learned: an id is the mixed-radix number of the rounded channels, so
the ids are all combinations of levels. Nothing to restart, no commitment.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmprod.models.quantizers.base import (
    Quantized,
    Quantizer,
    codes_of,
    full_precision,
    grid_of,
    rows_of,
)
from mmprod.models.quantizers.gradients import straight_through

MARGIN = 1e-3
"""keeps the bounded value inside the outermost rounding border"""


class FsqQuantizer(Quantizer):
    """z (B, D, h, w) -> s tanh(z + t) - o, within (-L/2, L/2) per channel -> round -> / (L // 2).

    points (K, D): the point of every id, in [-1, 1]. radius (D,): L // 2.
    """

    scale: Tensor
    offset: Tensor
    shift: Tensor
    radius: Tensor
    basis: Tensor
    points: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(math.prod(levels), len(levels))
        count = torch.tensor(levels, dtype=torch.float32)
        scale = (count - 1) * (1 + MARGIN) / 2
        # An even number of levels has no middle one: half a step to the side.
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        steps = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        ids = torch.arange(self.codebook_size)[:, None]
        radius = count.div(2, rounding_mode="floor")
        digits = torch.div(ids, steps, rounding_mode="floor") % torch.tensor(levels) - radius
        for name, value in (
            ("scale", scale),
            ("offset", offset),
            ("shift", torch.atanh(offset / scale)),
            ("radius", radius),
            ("basis", steps.to(torch.float32)),
            ("points", digits / radius),
        ):
            self.register_buffer(name, value, persistent=False)

    def _bounded(self, rows: Tensor) -> Tensor:
        """rows (..., D) -> the same, between the outermost levels, one level apart by 1."""
        return self.scale * torch.tanh(rows + self.shift) - self.offset

    def _ids(self, rounded: Tensor) -> Tensor:
        """rounded (..., D) -> ids (...) as float32, exact below 2^24."""
        return (rounded + self.radius) @ self.basis

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32; encoder_loss is zero."""
        with full_precision(z.device.type):
            bounded = self._bounded(rows_of(z.float()))
            ids = self._ids(torch.round(bounded.detach())).to(torch.int64)[:, None]
            scaled, chosen = bounded / self.radius, self.points[ids[:, 0]]
            if self.training:
                self._count(ids, scaled, chosen)
            latents = grid_of(straight_through(scaled, chosen), z)
            return Quantized(latents, codes_of(ids, len(z)), z.new_zeros((), dtype=torch.float32))

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            bounded = self._bounded(z.float().flatten(2).transpose(1, 2))
            return self._ids(torch.round(bounded)).to(torch.int32)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.points)
        return rearrange(vectors, "b (h w) d -> b d h w", h=grid[0], w=grid[1])

    def table(self) -> Tensor:
        return self.points
