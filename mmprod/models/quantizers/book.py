"""A codebook that moves by averages, never by gradients: the machinery of the spherical, Euclidean,
product and residual quantizers.

Sources: VQ-VAE (van den Oord et al. 2017, appendix A.1: moving averages); SoundStream (Zeghidour et
al. 2021, sec. III-C: restart of unused codes from current features), entropy-constrained
quantization (Chou, Lookabaugh and Gray 1989) where the rules have a rate.

Codes are fp32 *buffers*: no optimizer state, no ZeRO partition, nothing to gather at search time.
A fixed number of candidate features is gathered from all ranks, and restarts are drawn from it by a
generator seeded alike on every rank; every rank therefore holds the same codebook to the bit. A
restarted code's averages start anew with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmprod.models.quantizers.base import WINDOW, Totals, world_size
from mmprod.models.quantizers.search import nearest, nearest_in_graph, rivals_in

POOL = 4096
"""candidate features for restarts: about as many over a global batch, equally many per sample"""
PATIENCE_UPDATES = 16
PATIENCE_TOKENS = 4
"""a code is restarted when unused for that many updates and that many tokens per code of a book"""
RESTART_WEIGHT = 0.05
"""moving-average weight of a restarted code: low, so that it follows its tokens quickly"""
RESTART_NOISE = 0.01
"""standard deviation of the noise on a restarted code, in units of the features' own"""
LARGEST_ERROR = 0.25
"""of the latents' power, as far as the price of a bit goes: before a codebook fits, its error is no
guide
"""

TOWARDS_EVEN = 0.1
"""of the way to the wanted bonus in an update of a whole window of tokens, where rare ids are
preferred; at once, so large a batch would swing between all tokens of an id and none
"""
MOST_RARE = 4.0
"""bits that an id may be rarer than the average one, where rare ids are preferred"""


@dataclass(frozen=True)
class Rules:
    """How a book moves. decay: of the moving averages; unit: codes have length 1; in_turn: plane p
    is first placed at update p, on what the planes before it leave, and is zero until then; rate:
    weight of the bits of a code in the search (0: the nearest code; below 0: rare codes are
    preferred, as the bias of loss-free load balancing does, Wang et al. 2024).
    """

    decay: float
    restart: bool
    unit: bool
    in_turn: bool = False
    rate: float = 0.0


class Book(nn.Module):
    """`planes` books of `size` codes in d dimensions, stored as one table of K = planes * size.

    codes (K, d) | averages (K, 1+d): moving averages of [count, sum of features] | placed (K,):
    token count at which the code was last put on a feature | bonus (K,), with a rate only: minus
    half of what a code's bits cost, in units of squared distance.
    """

    codes: Tensor
    averages: Tensor
    placed: Tensor
    bonus: Tensor | None

    def __init__(self, size: int, dim: int, rules: Rules, *, planes: int = 1) -> None:
        super().__init__()
        self.size, self.dim, self.planes, self.rules = size, dim, planes, rules
        generator = torch.Generator().manual_seed(0)
        codes = torch.randn(planes * size, dim, generator=generator)
        codes = F.normalize(codes, dim=1) if rules.unit else codes
        if rules.in_turn:
            codes[size:] = 0
        self.register_buffer("codes", codes)
        self.register_buffer("averages", torch.zeros(planes * size, 1 + dim))
        self.register_buffer("placed", torch.zeros(planes * size, dtype=torch.int64))
        self.register_buffer("bonus", torch.zeros(planes * size) if rules.rate else None)
        self._features: list[Tensor] = []
        self.frozen = False
        """`move` leaves everything as it is"""

    def nearest(self, rows: Tensor, plane: int = 0) -> Tensor:
        """rows (n, d) -> ids (n,) of the nearest codes of a plane, in [0, K)."""
        codes, bonus = self._plane(plane)
        return nearest(rows, codes, unit=self.rules.unit, bonus=bonus) + plane * self.size

    def nearest_in_graph(self, x: Tensor, plane: int = 0) -> Tensor:
        """x (B, N, d) -> ids (B, N) int64, as `nearest` and for export."""
        codes, bonus = self._plane(plane)
        index = nearest_in_graph(x, codes, unit=self.rules.unit, bonus=bonus)
        return index + plane * self.size if plane else index

    def rivals(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What `nearest_in_graph` nearly chose; see `search.rivals_in`. One plane only."""
        return rivals_in(x, self.codes, count, unit=self.rules.unit, bonus=self.bonus)

    def _plane(self, plane: int) -> tuple[Tensor, Tensor | None]:
        """Codes of a plane, and their bonus."""
        own = slice(plane * self.size, (plane + 1) * self.size)
        return self.codes[own], None if self.bonus is None else self.bonus[own]

    def remember(self, features: Tensor, batch: int) -> None:
        """Keep the features (B*N, planes, d) of a micro-batch until `move`, for restarts."""
        self._features.append(rearrange(features.detach(), "(b n) p d -> b n p d", b=batch))

    def forget(self) -> None:
        """Drop the features that were kept for `move`."""
        self._features = []

    def move(self, totals: Totals) -> int:
        """Move every code to the average of its tokens; restart codes that no token used for a
        while. Returns how many were restarted (or first placed).
        """
        features, self._features = torch.cat(self._features), []
        if self.frozen:
            return 0
        statistics = torch.cat([totals.counts[:, None], totals.sums], dim=1)
        self.averages.mul_(self.rules.decay).add_(statistics, alpha=1 - self.rules.decay)
        first = torch.arange(self.planes * self.size, device=features.device) // self.size
        if not self.rules.in_turn:
            first = torch.zeros_like(first)
        used = (totals.counts > 0) & (first <= totals.update)
        self.codes.copy_(torch.where(used[:, None], self._means(), self.codes))
        if self.bonus is not None and totals.clock >= WINDOW:
            wanted = self._price(totals) * 0.5 * self._bits(totals.rate)
            share = TOWARDS_EVEN * WINDOW / totals.tokens if self.rules.rate < 0 else 1.0
            self.bonus.lerp_(wanted, min(1.0, share))
        patience = max(PATIENCE_UPDATES * totals.tokens, PATIENCE_TOKENS * self.size)
        idle = totals.clock - torch.maximum(totals.seen, self.placed)
        unused = (idle >= patience) if self.rules.restart else torch.zeros_like(used)
        stale = torch.where(first < totals.update, unused, first == totals.update)
        if not self.rules.restart and totals.update > (self.planes if self.rules.in_turn else 0):
            return 0
        return self._restart(self._pool(features, totals.update), stale, totals)

    def _price(self, totals: Totals) -> float:
        """Squared distance that a bit is worth, times the weight: at high rate the distortion D(R)
        of d channels falls by 2 ln 2 / d of itself with each bit (Chou, Lookabaugh, Gray 1989).
        """
        error = min(totals.error, LARGEST_ERROR * totals.power) / totals.tokens
        return self.rules.rate * 2 * math.log(2) / self.dim * error

    def _bits(self, rate: Tensor) -> Tensor:
        """Bits of every id under the shares `rate` (K,), negative; an id not seen in the window
        counts as half seen. Where rare ids are preferred, none counts as rarer than MOST_RARE
        bits, or an unseen one would draw half of all tokens in its next update.
        """
        shares = rate.view(self.planes, -1) + 0.5 / WINDOW
        bits = (shares / shares.sum(1, keepdim=True)).log2().flatten()
        return bits.clamp_min(-math.log2(self.size) - MOST_RARE) if self.rules.rate < 0 else bits

    def _means(self) -> Tensor:
        """Codes as the averages have them: mean direction of unit codes, else the mean."""
        sums = self.averages[:, 1:]
        if self.rules.unit:
            return F.normalize(sums, dim=1)
        return sums / self.averages[:, :1]

    def _pool(self, features: Tensor, update: int) -> Tensor:
        """features (B, N, planes, d) of this rank -> (R, planes, d), the same on every rank and for
        every number of ranks: the same places of every sample, in the order of the global batch.
        """
        batch, length = features.shape[:2]
        world = world_size()
        count = max(1, min(length, POOL // (batch * world)))
        if count < length:
            generator = torch.Generator().manual_seed(update)
            places = torch.randperm(length, generator=generator)[:count].to(features.device)
            features = features[:, places]
        rows = features.flatten(0, 1).contiguous()
        if world == 1:
            return rows
        gathered = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    def _restart(self, pool: Tensor, stale: Tensor, totals: Totals) -> int:
        """Replace stale codes by features of the pool plus noise; their averages start anew with a
        low weight.
        """
        generator = torch.Generator().manual_seed(totals.update)
        ids = self.planes * self.size
        pick = torch.randint(len(pool), (ids,), generator=generator).to(pool.device)
        noise = torch.randn(ids, self.dim, generator=generator).to(pool.device)
        plane = torch.arange(ids, device=pool.device) // self.size
        chosen = pool[pick, plane]
        if self.rules.unit:
            fresh = F.normalize(chosen + RESTART_NOISE * noise, dim=1)
        else:
            spread = pool.square().mean((0, 2)).sqrt()[plane, None]
            fresh = chosen + RESTART_NOISE * spread * noise
        averages = RESTART_WEIGHT * torch.cat([torch.ones_like(fresh[:, :1]), fresh], dim=1)
        self.codes.copy_(torch.where(stale[:, None], fresh, self.codes))
        self.averages.copy_(torch.where(stale[:, None], averages, self.averages))
        self.placed.copy_(torch.where(stale, totals.clock, self.placed))
        return int(stale.sum())
