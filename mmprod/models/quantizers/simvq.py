"""SimVQ: a fixed random codebook seen through one learned linear map, so all codes move together.

Source: Zhu et al. 2024, "Addressing representation collapse in vector quantized models with one
linear layer" (sec. 4). The map learns by gradients: it is used through its own forward, which is
where ZeRO-3 gathers it, and it gets a gradient in every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmprod.models.quantizers.base import (
    Quantized,
    Quantizer,
    codes_of,
    full_precision,
    grid_of,
    rows_of,
)
from mmprod.models.quantizers.gradients import GRADIENTS
from mmprod.models.quantizers.search import nearest, nearest_in_graph, rivals_in


class SimvqQuantizer(Quantizer):
    """z (B, D, h, w) -> argmin_k |z - W a_k|^2 -> W a_k.

    anchors (K, D) fixed, normal with variance 1/D | map W (D, D) learned.
    """

    anchors: Tensor

    def __init__(self, codebook_size: int, dim: int, *, commitment: float, gradient: str) -> None:
        super().__init__(codebook_size, dim)
        self.commitment = commitment
        self._gradient = GRADIENTS[gradient]
        generator = torch.Generator().manual_seed(0)
        anchors = torch.randn(codebook_size, dim, generator=generator) * dim**-0.5
        self.register_buffer("anchors", anchors)
        self.map = nn.Linear(dim, dim, bias=False)

    def _codes(self) -> Tensor:
        """(K, D) float32. In the type of the weights, which an engine may hold in bf16."""
        codes: Tensor = self.map(self.anchors.to(self.map.weight.dtype))
        return codes.float()

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32.

        encoder_loss also moves the map: |sg(z) - c|^2 + commitment |z - sg(c)|^2, means.
        """
        with full_precision(z.device.type):
            flat, codes = rows_of(z.float()), self._codes()
            ids = nearest(flat.detach(), codes.detach(), unit=False)
            chosen = F.embedding(ids, codes)
            loss = (flat.detach() - chosen).square().mean()
            loss = loss + self.commitment * (flat - chosen.detach()).square().mean()
            if self.training:
                self._count(ids[:, None], flat, chosen)
            latents = grid_of(self._gradient(flat, chosen), z)
            return Quantized(latents, codes_of(ids[:, None], len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        with full_precision(z.device.type):
            x = z.float().flatten(2).transpose(1, 2)
            return nearest_in_graph(x, self._codes(), unit=False).to(torch.int32)

    def rivals(self, z: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        with full_precision(z.device.type):
            x = z.float().flatten(2).transpose(1, 2)
            return rivals_in(x, self._codes(), count, unit=False)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        with full_precision(self.anchors.device.type):
            vectors = F.embedding(codes.to(torch.int64), self._codes())
            return rearrange(vectors, "b (h w) d -> b d h w", h=grid[0], w=grid[1])

    @torch.no_grad()
    def table(self) -> Tensor:
        with full_precision(self.anchors.device.type):
            return self._codes()
