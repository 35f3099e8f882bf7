"""RMSNorm (Zhang and Sennrich 2019), in fp32 whatever comes in, with a gradient that is quick on a
processor.

Autograd keeps and walks every intermediate of the formula; a third of a training step of a small
model went there. The gradient below reads the input again and takes two sums (docs/adr/0031). The
forward pass is the same formula everywhere, to the bit; evaluation and export never see the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x (..., D) -> x / rms(x) * gain, computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
            out: Tensor = _QuickGradient.apply(x, self.gain)  # type: ignore[no-untyped-call]
            return out
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)
        return (y * self.gain).to(x.dtype)


class _QuickGradient(torch.autograd.Function):
    """With n = x / rms(x): d_gain = sum of dy n, dx = (g - n mean(g n)) / rms(x), g = dy gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        y = x.float()
        scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)
        ctx.save_for_backward(x, gain, scale)
        return (y * scale).mul_(gain).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, scale = ctx.saved_tensors
        n, dy = x.float() * scale, dy.float()
        products = dy * n
        d_gain = products.flatten(0, -2).sum(0)
        mean = products.mul_(gain).mean(-1, keepdim=True)
        dx = (dy * gain).addcmul_(n, mean, value=-1).mul_(scale)
        return dx.to(x.dtype), d_gain.to(gain.dtype)
