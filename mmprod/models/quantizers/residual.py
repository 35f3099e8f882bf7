"""Residual quantizer: each book quantizes what the books before it left over.

Source: SoundStream (Zeghidour et al. 2021, sec. III-C), for pictures RQ-VAE (Lee et al. 2022,
sec. 3.1). Euclidean books. Book p is first placed at update p, on the residuals that the books
before it leave; until then it adds nothing.
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


class ResidualQuantizer(Quantizer):
    """z (B, D, h, w) -> r_0 = z; c_p = nearest of book p to r_p; r_{p+1} = r_p - c_p -> sum of c_p.

    size: codes of one book. The commitment is the mean over books of |z - sum up to p|^2.
    """

    def __init__(
        self, size: int, dim: int, rules: Rules, *, books: int, commitment: float, gradient: str
    ) -> None:
        super().__init__(books * size, dim, planes=books, features=dim)
        self.commitment = commitment
        self._gradient = GRADIENTS[gradient]
        self.book = Book(size, dim, rules, planes=books)

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32."""
        with full_precision(z.device.type):
            flat = rows_of(z.float())
            rest, total = flat.detach(), torch.zeros_like(flat)
            ids, rests, errors = [], [], []
            for plane in range(self.planes):
                ids.append(self.book.nearest(rest, plane))
                rests.append(rest)
                chosen = self.book.codes[ids[-1]]
                rest, total = rest - chosen, total + chosen
                errors.append((flat - total).square().mean())
            all_ids, loss = torch.stack(ids, dim=1), self.commitment * torch.stack(errors).mean()
            if self.training:
                features = torch.stack(rests, dim=1)
                self._count(all_ids, flat, total, features)
                self.book.remember(features, len(z))
            latents = grid_of(self._gradient(flat, total), z)
            return Quantized(latents, codes_of(all_ids, len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            rest = z.float().flatten(2).transpose(1, 2)
            codes = []
            for plane in range(self.planes):
                codes.append(self.book.nearest_in_graph(rest, plane))
                rest = rest - F.embedding(codes[-1], self.book.codes)
            return torch.cat(codes, dim=1).to(torch.int32)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.book.codes)
        planes = rearrange(
            vectors, "b (p h w) d -> p b d h w", p=self.planes, h=grid[0], w=grid[1]
        ).unbind(0)
        total = planes[0]
        for plane in planes[1:]:
            total = total + plane
        return total

    def table(self) -> Tensor:
        return self.book.codes

    @torch.no_grad()
    def update(self) -> Readout:
        totals = self._collect()
        return {} if totals is None else self._readout(totals, self.book.move(totals))
