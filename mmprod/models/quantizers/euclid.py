"""The quantizer of the VQ-VAE, with its moving averages: nearest code by Euclidean distance.

Source: VQ-VAE (van den Oord et al. 2017, sec. 3.2 and appendix A.1), plus restart of unused codes
(see `book`). The latents keep their length, so the scale of the codes is learned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmprod.models.quantizers.base import (
    Quantized,
    Quantizer,
    Readout,
    codes_of,
    full_precision,
    grid_of,
    rows_of,
)
from mmprod.models.quantizers.book import Book, Rules
from mmprod.models.quantizers.gradients import GRADIENTS


class EuclidQuantizer(Quantizer):
    """z (B, D, h, w) -> argmin_k |z - c_k|^2 -> c_k, the mean of its tokens."""

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        rules: Rules,
        *,
        commitment: float,
        gradient: str = "straight",
    ) -> None:
        super().__init__(codebook_size, dim, features=dim)
        self.commitment = commitment
        self._gradient = GRADIENTS[gradient]
        self.book = Book(codebook_size, dim, rules)

    @property
    def codes(self) -> Tensor:
        """(K, D)."""
        return self.book.codes

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32."""
        with full_precision(z.device.type):
            flat = rows_of(z.float())
            ids = self.book.nearest(flat.detach())
            chosen = self.codes[ids]
            loss = self.commitment * (flat - chosen).square().mean()
            if self.training:
                self._count(ids[:, None], flat, chosen, flat[:, None])
                self.book.remember(flat[:, None], len(z))
            latents = grid_of(self._gradient(flat, chosen), z)
            return Quantized(latents, codes_of(ids[:, None], len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            x = z.float().flatten(2).transpose(1, 2)
            return self.book.nearest_in_graph(x).to(torch.int32)

    def rivals(self, z: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        with full_precision(z.device.type):
            return self.book.rivals(z.float().flatten(2).transpose(1, 2), count)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.codes)
        return rearrange(vectors, "b (h w) d -> b d h w", h=grid[0], w=grid[1])

    def table(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def update(self) -> Readout:
        totals = self._collect()
        return {} if totals is None else self._readout(totals, self.book.move(totals))
