"""RMSNorm (Zhang and Sennrich 2019) whose gradient is quick on a processor.

Written as plain operations its backward pass takes four times as long as its forward pass, and with
four norms a block a fifth of a training step. PyTorch has a fused backward pass of LayerNorm, which
with a mean of zero is nearly that of RMSNorm: it only takes the mean of dy * gain away, which is
given back here. The forward pass of training takes the root of the squares' mean from PyTorch's
vector norm, in half the passes over memory; it differs from the formula by rounding. Evaluation,
export and every other device keep the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmprod.models.processor import trains_on_processor

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x (..., D) -> x / rms(x) * gain, computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_processor(self, x):
            out: Tensor = _QuickGradient.apply(x, self.gain)  # type: ignore[no-untyped-call]
            return out
        y = x.float()
        scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)
        return (y * scale * self.gain).to(x.dtype)


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean(x^2) + EPSILON) of the last axis, (..., D) -> (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse: Tensor = norm.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
    return inverse


class _QuickGradient(torch.autograd.Function):
    """With n = x / rms(x) and d = dy * gain: dx = (d - n mean(d n)) / rms(x), in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        y = x.float()
        scale = inverse_rms(y)
        ctx.save_for_backward(x, gain, scale)
        return (y * scale).mul_(gain).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, scale = ctx.saved_tensors
        width = x.shape[-1]
        d = dy.float().contiguous()
        dx, dgain, _ = torch.ops.aten.native_layer_norm_backward(
            d,
            x.float().contiguous(),
            [width],
            torch.zeros_like(scale),
            scale,
            gain.float(),
            None,
            [True, True, False],
        )
        taken = (d.reshape(-1, width) @ gain.float()).view(scale.shape) * (scale / width)
        return dx.add_(taken).to(x.dtype), dgain.to(gain.dtype)
