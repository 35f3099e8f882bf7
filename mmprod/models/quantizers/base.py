"""What every quantizer is: latents <-> ids, and the counters of which ids occur.

A quantizer gives `planes` ids per latent position. K counts the ids of all planes together; an id
of plane p lies in [p*K/planes, (p+1)*K/planes), so one table of K rows serves all planes.

Counting costs one `index_add_` per forward pass and ONE all_reduce of one flat tensor per update:
[power, error | per id: count, sum of features]. Quantizers with a moving codebook (`book.Book`)
take their sums from the same tensor. Everything here is computed alike on every rank.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

Readout = dict[str, float]

WINDOW = 65_536
"""latent positions over which `usage` and `rate` look back (LlamaGen's window); `usage` over less
than one update more, as ids are dated by updates"""
LARGEST_SNR = 100.0


@dataclass(frozen=True)
class Quantized:
    """Result of quantizing latents in training.

    latents (B, D, h, w) float32: exactly the chosen code vectors in value, with the encoder's
    gradient (see `gradients`). codes (B, N) int64, plane after plane. encoder_loss: scalar, the
    quantizer's share of L_encoder.
    """

    latents: Tensor
    codes: Tensor
    encoder_loss: Tensor


@dataclass(frozen=True)
class Totals:
    """What one update knows of all ranks' tokens since the last one.

    counts (K,), sums (K, d) of the features per id, rate and seen (K,) as after this update, tokens
    of this update, clock: tokens of all updates, update: number of this one from 0; power of the
    latents and of their error.
    """

    counts: Tensor
    sums: Tensor
    rate: Tensor
    seen: Tensor
    tokens: int
    clock: int
    update: int
    power: float
    error: float


class Quantizer(nn.Module):
    """Base of the quantizers: latents (B, D, h, w) <-> codes (B, N), row-major, plane after plane.

    rate (K,): moving average of the share of each id, sums to 1 | seen (K,): token count at which
    an id last occurred, 0 if never | tokens, updates: counters. One class per paper, no deeper.
    """

    rate: Tensor
    seen: Tensor
    tokens: Tensor
    updates: Tensor

    def __init__(self, codebook_size: int, dim: int, *, planes: int = 1, features: int = 0) -> None:
        """codebook_size K of all planes together; features: size of the vectors summed per id."""
        super().__init__()
        self.codebook_size, self.dim, self.planes = codebook_size, dim, planes
        self._features = features
        self.register_buffer("rate", torch.zeros(codebook_size))
        self.register_buffer("seen", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._pending: Tensor | None = None

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) of any float type -> Quantized; in training mode also counts."""
        raise NotImplementedError

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32. Exports as matrix products, ArgMax, Round."""
        raise NotImplementedError

    def rivals(self, z: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        """What `encode` nearly chose: z (B, D, h, w) -> ids (B, N, R) int32, changes (B, N, R)
        float32, as `search.rivals_in`; None for a quantizer that cannot say.
        """
        return None

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) integer in [0, K) -> latents (B, D, h, w) float32. Exports as one Gather."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """What each id adds to the latents: (K, D) float32."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self) -> Readout:
        """Count, and move what moves, after an optimizer step. All ranks call it together;
        afterwards all hold the same bits.

        Returns usage (share of ids seen in the last WINDOW positions), perplexity of `rate`,
        restarts, snr (dB, latents over their error); nothing when no training pass came before.
        """
        totals = self._collect()
        return {} if totals is None else self._readout(totals, 0)

    @torch.no_grad()
    def _count(
        self, ids: Tensor, z: Tensor, chosen: Tensor, features: Tensor | None = None
    ) -> None:
        """Add this micro-batch: ids (n, planes), z and chosen (n, D), features (n, planes, d)."""
        if self._pending is None:
            size = 2 + self.codebook_size * (1 + self._features)
            self._pending = torch.zeros(size, device=z.device)
        self._pending[0] += z.square().sum()
        self._pending[1] += (z - chosen).square().sum()
        flat = ids.flatten()
        rows = torch.ones(len(flat), 1, device=z.device)
        if features is not None:
            rows = torch.cat([rows, features.flatten(0, 1)], dim=1)
        self._pending[2:].view(self.codebook_size, -1).index_add_(0, flat, rows)

    def forget(self) -> None:
        """Leave what was counted since the last update out of the next one."""
        self._pending = None

    def _collect(self) -> Totals | None:
        """Sum over ranks, move `rate`, `seen` and the counters; None when nothing was counted."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        if world_size() > 1:
            dist.all_reduce(pending)
        table = pending[2:].view(self.codebook_size, -1)
        counts = table[:, 0]
        ids = float(counts.sum(dtype=torch.float64))
        tokens, update = round(ids / self.planes), int(self.updates)
        self.tokens.add_(tokens)
        self.updates.add_(1)
        clock = int(self.tokens)
        # The plain mean until the window is full, from then on a moving average.
        weight = min(1.0, tokens / min(clock, WINDOW))
        self.rate.mul_(1 - weight).add_(counts / ids, alpha=weight)
        self.seen.copy_(torch.where(counts > 0, self.tokens, self.seen))
        power, error = pending[:2].tolist()
        return Totals(
            counts, table[:, 1:], self.rate, self.seen, tokens, clock, update, power, error
        )

    def _readout(self, totals: Totals, restarts: int) -> Readout:
        lately = (self.seen > 0) & (self.seen > totals.clock - WINDOW)
        entropy = -(self.rate * self.rate.clamp_min(1e-30).log()).sum()
        return {
            "usage": float(lately.float().mean()),
            "perplexity": float(entropy.exp()),
            "restarts": float(restarts),
            "snr": decibel(totals.power, totals.error),
        }


def decibel(power: float, error: float) -> float:
    """10 log10(power / error), within +-LARGEST_SNR."""
    if power == 0 or error == 0:
        return LARGEST_SNR if error == 0 else -LARGEST_SNR
    return max(-LARGEST_SNR, min(LARGEST_SNR, 10 * math.log10(power / error)))


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Quantizers compute in fp32 also when the model around them runs under autocast."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def rows_of(z: Tensor) -> Tensor:
    """z (B, D, h, w) -> (B*h*w, D)."""
    rows: Tensor = rearrange(z, "b d h w -> (b h w) d")
    return rows


def grid_of(rows: Tensor, z: Tensor) -> Tensor:
    """rows (B*h*w, D) -> the shape of z (B, D, h, w)."""
    grid: Tensor = rearrange(rows, "(b h w) d -> b d h w", h=z.shape[2], w=z.shape[3])
    return grid


def codes_of(ids: Tensor, batch: int) -> Tensor:
    """ids (B*n, planes) -> codes (B, planes*n), plane after plane."""
    codes: Tensor = rearrange(ids, "(b n) p -> b (p n)", b=batch)
    return codes
