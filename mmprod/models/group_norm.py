"""GroupNorm (Wu and He 2018) that trains quickly on a processor.

Pictures enter the codec as (B, H, W, 3), so its activations lie in memory channels last, which is
what convolutions on a processor like best. PyTorch's own GroupNorm does not: in bf16 its backward
pass takes longer than half of the convolution beside it and its forward pass half as long, the ones
below a fraction of that (docs/adr/0015, 0031). The forward pass in fp32 is PyTorch's, to the bit;
so are evaluation, export and every other device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmprod.models.processor import trains_on_processor

CHUNK = 2**18
"""elements whose products are alive in float32 at a time"""


class GroupNorm(nn.GroupNorm):
    """x (B, C, h, w) -> the same shape and memory format."""

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_processor(self, x) and _channels_last(x):
            arguments = x, self.weight, self.bias, self.num_groups, self.eps
            out: Tensor = _QuickGradient.apply(*arguments)  # type: ignore[no-untyped-call]
            return out
        return super().forward(x)


def _channels_last(x: Tensor) -> bool:
    """False also where both orders are the same, e.g. at one pixel."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class _QuickGradient(torch.autograd.Function):
    """The gradient written as sums over the pixels, kept per channel and folded into groups, and
    two passes over the elements: dx = dy * c1 + (x * c2 + c3), with c1 (B, C), c2 and c3 (B, G).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        batch, channels, height, width = x.shape
        if x.dtype == torch.bfloat16:
            out, mean, rstd = _normalise(x, weight, bias, groups, eps)
        else:
            out, mean, rstd = torch.native_group_norm(
                x, weight, bias, batch, channels, height * width, groups, eps
            )
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = x.shape
        groups = mean.shape[1]
        x, dy = _rows(x), _rows(dy)
        mean, rstd = mean.float(), rstd.float()
        sum_dy = dy.sum(1, dtype=torch.float32)

        def fold(per_channel: Tensor) -> Tensor:
            weighted: Tensor = per_channel * weight
            return weighted.view(batch, groups, -1).sum(2)

        def spread(per_group: Tensor) -> Tensor:
            return per_group.repeat_interleave(channels // groups, dim=1)

        moments = _moments(x, dy, spread(mean))
        count = height * width * (channels // groups)
        c2 = -fold(moments) * rstd**3 / count
        c3 = -c2 * mean - fold(sum_dy) * rstd / count
        c1, c2, c3 = (
            c.to(x.dtype)[:, None] for c in (spread(rstd) * weight, spread(c2), spread(c3))
        )
        dx = torch.addcmul(torch.addcmul(c3, x, c2), dy, c1)
        d_weight = (moments * spread(rstd)).sum(0)
        return (
            dx.view(batch, height, width, channels).permute(0, 3, 1, 2),
            d_weight.to(weight.dtype),
            sum_dy.sum(0).to(weight.dtype),
            None,
            None,
        )


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `torch.native_group_norm` returns: the output, mean and 1 / deviation (B, G) float32.

    Sums over the pixels first, which lie in memory beside their channels, about the mean, in fp32.
    """
    batch, channels, height, width = x.shape
    count = height * width * (channels // groups)
    rows = _rows(x)
    out = torch.empty_like(rows)
    means, scales = [], []
    for part, target in zip(*(torch.split(t, _in_chunk(rows)) for t in (rows, out)), strict=True):
        values = part.float()
        mean = values.sum(1).view(len(part), groups, -1).sum(2) / count
        values -= mean.repeat_interleave(channels // groups, dim=1)[:, None]
        squares = values.square().sum(1).view(len(part), groups, -1).sum(2) / count
        scale = torch.rsqrt(squares + eps)
        values *= (scale.repeat_interleave(channels // groups, dim=1) * weight)[:, None]
        target.copy_(values.add_(bias))
        means.append(mean)
        scales.append(scale)
    out = out.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return out, torch.cat(means), torch.cat(scales)


def _in_chunk(rows: Tensor) -> int:
    """How many samples are worked on at a time: rows (B, h*w, C)."""
    return min(len(rows), max(1, CHUNK // rows[0].numel()))


def _moments(x: Tensor, dy: Tensor, mean: Tensor) -> Tensor:
    """Sums over the pixels of dy (x - mean), (B, C) float32: x, dy (B, h*w, C), mean (B, C).

    About the mean and without rounding on the way: sums of dy x in bf16 lose what is small beside
    the mean.
    """
    height = _in_chunk(x)
    buffer = x.new_empty((height, *x.shape[1:]), dtype=torch.promote_types(x.dtype, torch.float32))
    sums = []
    chunks = (torch.split(tensor, height) for tensor in (x, dy, mean))
    for part, slope, middle in zip(*chunks, strict=True):
        product = buffer[: len(part)].copy_(part).sub_(middle[:, None]).mul_(slope)
        sums.append(product.sum(1, dtype=torch.float32))
    return torch.cat(sums)


def _rows(x: Tensor) -> Tensor:
    """x (B, C, h, w) -> (B, h*w, C), without a copy when the channels lie last in memory."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
