"""Spherical vector quantizer: unit-norm codes in a low dimension, moved by averages, never by
gradients.

Sources: VQ-VAE (van den Oord et al. 2017, sec. 3.2: straight-through, commitment; appendix A.1:
moving averages); ViT-VQGAN (Yu et al. 2022, sec. 3.2: low-dimensional l2-normalised codes);
SoundStream (Zeghidour et al. 2021, sec. III-C: restart of unused codes from current features).

The codebook is an fp32 *buffer*: no optimizer state, no ZeRO partition, nothing to gather at search
time. Search is a matrix product and a maximum over chunks of rows, so the (tokens x K) similarity
is never kept. `update` adds the statistics of all ranks in ONE flat all_reduce, gathers a fixed
number of candidate features, and draws restarts from a generator seeded alike on every rank; every
rank therefore holds the same codebook to the bit.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmprod.models.quantizers.base import Quantized, Readout

SEARCH_ROWS = 256
"""rows of the similarity matrix alive at a time while training"""
POOL = 4096
"""candidate features for restarts: about as many over a global batch, equally many per sample"""
RESTART_WEIGHT = 0.05
"""moving-average weight of a restarted code: low, so that it follows its tokens quickly"""
RESTART_NOISE = 0.01
USAGE_DECAY = 0.98


class SphericalQuantizer(nn.Module):
    """z (B, D, h, w) -> normalize -> argmax_k <z, c_k> -> c_k.

    codes (K, D) unit rows | sums (K, D) moving averages | idle (K,) updates since last use | rate
    (K,) usage average.
    """

    codes: Tensor
    sums: Tensor
    idle: Tensor
    rate: Tensor
    updates: Tensor

    def __init__(
        self, codebook_size: int, dim: int, *, decay: float, commitment: float, restart: bool
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.decay, self.commitment, self.restart = decay, commitment, restart
        generator = torch.Generator().manual_seed(0)
        codes = F.normalize(torch.randn(codebook_size, dim, generator=generator), dim=1)
        self.register_buffer("codes", codes)
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        self.register_buffer("idle", torch.zeros(codebook_size))
        self.register_buffer("rate", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._statistics: Tensor | None = None
        self._features: list[Tensor] = []

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized, fp32 (see base.Quantized)."""
        with _no_autocast(z.device.type):
            grid = z.shape[2:]
            unit = F.normalize(z.float(), dim=1)
            flat = rearrange(unit, "b d h w -> (b h w) d")
            index = self._search_rows(flat.detach())
            chosen = self.codes[index]
            loss = self.commitment * (flat - chosen).square().sum(1).mean()
            if self.training:
                self._gather_statistics(flat.detach(), index, len(z))
            straight = chosen + (flat - flat.detach())
            latents = rearrange(straight, "(b h w) d -> b d h w", h=grid[0], w=grid[1])
            return Quantized(latents, index.view(z.shape[0], -1), loss)

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32."""
        unit = F.normalize(z.float(), dim=1)
        return (unit.flatten(2).transpose(1, 2) @ self.codes.T).argmax(2).to(torch.int32)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) in [0, K) -> latents (B, D, h, w) float32."""
        vectors = F.embedding(codes.to(torch.int64), self.codes)
        return rearrange(vectors, "b (h w) d -> b d h w", h=grid[0], w=grid[1])

    def _search_rows(self, flat: Tensor) -> Tensor:
        """flat (n, D) -> index (n,) of the nearest code, without the full (n, K) matrix."""
        with torch.no_grad():
            transposed = self.codes.T.contiguous()
            return torch.cat(
                [(rows @ transposed).max(1).indices for rows in torch.split(flat, SEARCH_ROWS)]
            )

    def _gather_statistics(self, flat: Tensor, index: Tensor, batch: int) -> None:
        """Add this micro-batch to [counts | sums], flat (K * (1 + D),), and remember features for
        restarts.
        """
        counts = torch.zeros(self.codebook_size, 1 + self.dim, device=flat.device)
        counts.index_add_(0, index, torch.cat([torch.ones_like(flat[:, :1]), flat], dim=1))
        self._statistics = counts if self._statistics is None else self._statistics + counts
        self._features.append(rearrange(flat, "(b n) d -> b n d", b=batch))

    @torch.no_grad()
    def update(self) -> Readout:
        """Move every code to the average direction of its tokens; restart codes that no token used
        for a while.
        """
        if self._statistics is None:
            return {}
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        statistics, pool = self._statistics, self._pool(torch.cat(self._features), world)
        if world > 1:
            dist.all_reduce(statistics)
        counts, sums = statistics[:, 0], statistics[:, 1:]
        first = int(self.updates) == 0
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        used = counts > 0
        self.codes.copy_(torch.where(used[:, None], F.normalize(self.sums, dim=1), self.codes))
        self.idle.copy_(torch.where(used, torch.zeros_like(self.idle), self.idle + 1))
        self.rate.mul_(USAGE_DECAY).add_(counts / counts.sum(), alpha=1 - USAGE_DECAY)
        patience = max(16.0, 4.0 * self.codebook_size / float(counts.sum()))
        restarted = self._restart(pool, torch.ones_like(used) if first else self.idle >= patience)
        self.updates.add_(1)
        self._statistics, self._features = None, []
        share = self.rate / self.rate.sum()
        return {
            "usage": float((self.idle < patience).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())),
            "restarts": float(restarted),
        }

    def _pool(self, features: Tensor, world: int) -> Tensor:
        """features (B, N, D) of this rank -> (R, D), the same on every rank and for every number of
        ranks: the same places of every sample, in the order of the global batch.
        """
        batch, length, _ = features.shape
        count = max(1, min(length, POOL // (batch * world)))
        if count < length:
            generator = torch.Generator().manual_seed(int(self.updates))
            places = torch.randperm(length, generator=generator)[:count].to(features.device)
            features = features[:, places]
        rows = features.flatten(0, 1).contiguous()
        if world == 1:
            return rows
        gathered = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    def _restart(self, pool: Tensor, dead: Tensor) -> int:
        """Replace dead codes by features of the pool plus noise; their averages start anew with a
        low weight.
        """
        if not self.restart and int(self.updates) > 0:
            return 0
        generator = torch.Generator().manual_seed(int(self.updates))
        pick = torch.randint(len(pool), (self.codebook_size,), generator=generator).to(pool.device)
        noise = torch.randn(self.codebook_size, self.dim, generator=generator).to(pool.device)
        fresh = F.normalize(pool[pick] + RESTART_NOISE * noise, dim=1)
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.sums.copy_(torch.where(dead[:, None], RESTART_WEIGHT * fresh, self.sums))
        self.idle.copy_(torch.where(dead, torch.zeros_like(self.idle), self.idle))
        return int(dead.sum())


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """The quantizer computes in fp32 also when the model around it runs under autocast."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
