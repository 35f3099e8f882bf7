"""Nearest code: the largest <x, c> - |c|^2 / 2, which has the order of the smallest distance.

One matrix product with the constant as its bias (and no bias for unit codes), then a maximum. A
`bonus` per code added to it makes the search look for the best of distance and another thing. In
training over chunks of rows, without autograd, so the (rows x K) matrix never exists as a whole;
in a graph on everything at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = {"cpu": 2**20}
"""similarities alive at a time while training: on a CPU what stays in the cache"""
ELSEWHERE = 2**25
"""the same on other devices, to start few kernels; a guess, untimed"""
BLOCK = 128
"""codes whose maximum is taken together; a maximum without its place is many times faster than one
with it, so the place is looked for in the best block only"""


def bias_of(codes: Tensor) -> Tensor:
    """codes (K, D) -> -|c|^2 / 2, (K,)."""
    return codes.square().sum(1) * -0.5


@torch.no_grad()
def nearest(rows: Tensor, codes: Tensor, *, unit: bool, bonus: Tensor | None = None) -> Tensor:
    """rows (n, D), codes (K, D) -> index (n,) int64 of the code with the largest similarity (plus
    `bonus` (K,), half a squared distance each). `unit`: all codes have length 1.
    """
    transposed = codes.T.contiguous()
    bias = _constant(codes, unit, bonus)
    height = min(len(rows), max(1, SCORES.get(rows.device.type, ELSEWHERE) // len(codes)))
    buffer = rows.new_empty(height, len(codes))
    found = []
    for chunk in torch.split(rows, height):
        scores = buffer[: len(chunk)]
        if bias is None:
            torch.mm(chunk, transposed, out=scores)
        else:
            torch.addmm(bias, chunk, transposed, out=scores)
        found.append(_first_largest(scores))
    return torch.cat(found)


def _first_largest(scores: Tensor) -> Tensor:
    """scores (n, K) -> the place of the largest of each row, the first of equals; (n,) int64."""
    count, codes = scores.shape
    if codes % BLOCK:
        return scores.argmax(1)
    blocks = scores.view(count, codes // BLOCK, BLOCK)
    best = blocks.amax(2).argmax(1)
    inside = blocks[torch.arange(count, device=scores.device), best].argmax(1)
    return best * BLOCK + inside


def nearest_in_graph(
    x: Tensor, codes: Tensor, *, unit: bool, bonus: Tensor | None = None
) -> Tensor:
    """x (B, N, D), codes (K, D) -> index (B, N) int64; exports as MatMul, Add, ArgMax."""
    return F.linear(x, codes, _constant(codes, unit, bonus)).argmax(2)


def rivals_in(
    x: Tensor, codes: Tensor, count: int, *, unit: bool, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the search nearly chose: x (B, N, D), codes (K, D) -> ids (B, N, R) int32 of the
    `count` best codes by similarity, best first; changes (B, N, R) float32, 0 for the best.

    changes: the smallest |d| / |x| for which x + d may be given that code: a change d moves the
    lead of the best code a over b by <d, a - b>, at most |d| |a - b|. In float64, sample by sample.
    """
    constant = _constant(codes.double(), unit, None if bonus is None else bonus.double())
    found = [_rivals_of(sample, codes.double(), constant, count) for sample in x.double()]
    ids, changes = zip(*found, strict=True)
    return torch.stack(ids).to(torch.int32), torch.stack(changes).to(torch.float32)


def _rivals_of(
    x: Tensor, codes: Tensor, constant: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """One sample: x (N, D) -> ids (N, R) int64, changes (N, R)."""
    scores, ids = F.linear(x, codes, constant).topk(min(count, len(codes)), dim=1)
    apart = (codes[ids] - codes[ids[:, :1]]).norm(dim=2)
    reach = apart * x.norm(dim=1, keepdim=True)
    lead = scores[:, :1] - scores
    return ids, torch.where(lead > 0, lead / reach.clamp_min(1e-300), 0.0)


def _constant(codes: Tensor, unit: bool, bonus: Tensor | None) -> Tensor | None:
    if unit:
        return bonus
    return bias_of(codes) if bonus is None else bias_of(codes) + bonus
