"""Lookup-free quantization: every channel gives one bit, its sign.

Source: MAGVIT-v2 (Yu et al. 2024, sec. 3.1 and eq. 4-5). K = 2^D, the codes are the corners of a
cube. The entropy term asks each token to be sure of its code and all tokens together to use all
codes: H(q(c|z)) averaged over tokens minus H(mean of q(c|z)).

q(c|z) = softmax over corners of -|z - c|^2 / temperature is a product over channels. So the first
entropy is a sum over channels, and the mean of q over tokens is one matrix product of two
half-width tables, (2^(D/2) x tokens) (tokens x 2^(D/2)): exact for the joint distribution, without
a (tokens x K) matrix. That mean is over the tokens of a micro-batch of one rank.
"""

from __future__ import annotations

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

TEMPERATURE = 1.0


class LfqQuantizer(Quantizer):
    """z (B, D, h, w) -> sign(z) in {-1, 1}^D -> id = sum of 2^i where channel i is positive.

    points (K, D): the corner of every id.
    """

    basis: Tensor
    points: Tensor

    def __init__(self, dim: int, *, commitment: float, entropy: float) -> None:
        super().__init__(2**dim, dim)
        self.commitment, self.entropy = commitment, entropy
        bits = torch.arange(self.codebook_size)[:, None] >> torch.arange(dim) & 1
        self.register_buffer("points", 2.0 * bits - 1, persistent=False)
        self.register_buffer("basis", 2.0 ** torch.arange(dim), persistent=False)

    def _ids(self, rows: Tensor) -> Tensor:
        """rows (..., D) -> ids (...) as float32, exact below 2^24."""
        return (rows > 0).to(torch.float32) @ self.basis

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32."""
        with full_precision(z.device.type):
            flat = rows_of(z.float())
            ids = self._ids(flat.detach()).to(torch.int64)[:, None]
            chosen = self.points[ids[:, 0]]
            loss = self.commitment * (flat - chosen).square().mean()
            loss = loss + self.entropy * entropy_gap(flat)
            if self.training:
                self._count(ids, flat, chosen)
            latents = grid_of(straight_through(flat, chosen), z)
            return Quantized(latents, codes_of(ids, len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            return self._ids(z.float().flatten(2).transpose(1, 2)).to(torch.int32)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.points)
        return rearrange(vectors, "b (h w) d -> b d h w", h=grid[0], w=grid[1])

    def table(self) -> Tensor:
        return self.points


def entropy_gap(rows: Tensor) -> Tensor:
    """rows (n, D) -> mean of H(q(c|z)) minus H(mean of q(c|z)), nats, a scalar."""
    logits = 4 / TEMPERATURE * rows
    positive = torch.sigmoid(logits)
    per_bit = F.softplus(logits) - logits * positive
    joint = _corners(positive[:, : rows.shape[1] // 2]).T @ _corners(
        positive[:, rows.shape[1] // 2 :]
    )
    mean = joint / len(rows)
    return per_bit.sum(1).mean() + (mean * mean.clamp_min(1e-30).log()).sum()


def _corners(positive: Tensor) -> Tensor:
    """positive (n, d): probability of each bit -> (n, 2^d): probability of every combination."""
    out = torch.ones(len(positive), 1, device=positive.device)
    for bit in positive.unbind(1):
        out = torch.cat([out * (1 - bit[:, None]), out * bit[:, None]], dim=1)
    return out
