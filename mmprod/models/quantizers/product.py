"""Product quantizer: the channels are cut into groups, each with a book of its own.

Sources: product quantization (Jegou et al. 2011, sec. II); in tokenizers UniTok (Ma et al. 2025,
multi-codebook quantization). G books of K/G codes reach (K/G)^G points for the search cost of K.
Each book is spherical or Euclidean as in the files of that name.
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


class ProductQuantizer(Quantizer):
    """z (B, D, h, w) -> G groups of D/G channels -> nearest code of each -> joined.

    size: codes of one book; plane g of the codes belongs to channels [g*D/G, (g+1)*D/G).
    """

    def __init__(
        self, size: int, dim: int, rules: Rules, *, books: int, commitment: float, gradient: str
    ) -> None:
        super().__init__(books * size, dim, planes=books, features=dim // books)
        self.commitment = commitment
        self._gradient = GRADIENTS[gradient]
        self.book = Book(size, dim // books, rules, planes=books)

    def _groups(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., G, D/G), each group of length 1 where the books are spherical."""
        groups: Tensor = rearrange(x, "... (g d) -> ... g d", g=self.planes)
        return F.normalize(groups, dim=-1) if self.book.rules.unit else groups

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32."""
        with full_precision(z.device.type):
            groups = self._groups(rows_of(z.float()))
            plain = groups.detach()
            planes = range(self.planes)
            ids = torch.stack([self.book.nearest(plain[:, p], p) for p in planes], dim=1)
            chosen = self.book.codes[ids]
            error = (groups - chosen).square()
            loss = self.commitment * (error.sum(2) if self.book.rules.unit else error).mean()
            if self.training:
                self._count(ids, groups, chosen, groups)
                self.book.remember(groups, len(z))
            latents = self._gradient(groups, chosen).flatten(1)
            return Quantized(grid_of(latents, z), codes_of(ids, len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            groups = self._groups(z.float().flatten(2).transpose(1, 2))
            planes = range(self.planes)
            codes = [self.book.nearest_in_graph(groups[:, :, p], p) for p in planes]
            return torch.cat(codes, dim=1).to(torch.int32)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.book.codes)
        return rearrange(vectors, "b (g h w) d -> b (g d) h w", g=self.planes, h=grid[0], w=grid[1])

    def table(self) -> Tensor:
        """(K, D): a code in the channels of its group, zero elsewhere."""
        codes = rearrange(self.book.codes, "(g k) d -> g k 1 d", g=self.planes)
        own = torch.eye(self.planes, device=codes.device)[:, None, :, None]
        table: Tensor = rearrange(codes * own, "g k own d -> (g k) (own d)")
        return table

    @torch.no_grad()
    def update(self) -> Readout:
        totals = self._collect()
        return {} if totals is None else self._readout(totals, self.book.move(totals))
