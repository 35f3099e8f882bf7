"""Spherical vector quantizer: unit-norm codes in a low dimension. The default.

Sources: ViT-VQGAN (Yu et al. 2022, sec. 3.2: low-dimensional l2-normalised codes), with codes that
move by averages and restart when unused (see `book`).
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


class SphericalQuantizer(Quantizer):
    """z (B, D, h, w) -> normalize -> argmax_k <z, c_k> -> c_k."""

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
        """(K, D), rows of length 1."""
        return self.book.codes

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32."""
        with full_precision(z.device.type):
            flat = rows_of(F.normalize(z.float(), dim=1))
            ids = self.book.nearest(flat.detach())
            chosen = self.codes[ids]
            loss = self.commitment * (flat - chosen).square().sum(1).mean()
            if self.training:
                self._count(ids[:, None], flat, chosen, flat[:, None])
                self.book.remember(flat[:, None], len(z))
            latents = grid_of(self._gradient(flat, chosen), z)
            return Quantized(latents, codes_of(ids[:, None], len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            unit = F.normalize(z.float(), dim=1).flatten(2).transpose(1, 2)
            return self.book.nearest_in_graph(unit).to(torch.int32)

    def rivals(self, z: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        with full_precision(z.device.type):
            unit = F.normalize(z.float(), dim=1).flatten(2).transpose(1, 2)
            return self.book.rivals(unit, count)

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
