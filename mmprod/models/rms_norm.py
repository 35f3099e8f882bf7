"""RMSNorm (Zhang and Sennrich 2019) whose gradient is quick on a processor.

Written as plain operations its backward pass takes four times as long as its forward pass, and with
four norms a block a fifth of a training step. PyTorch has a fused backward pass of LayerNorm, which
with a mean of zero is nearly that of RMSNorm: it only takes the mean of dy * gain away, which is
given back here. The forward pass is the same, to the bit; so are evaluation, export and every other
device.
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
        if self.training and x.device.type == "cpu":
            out: Tensor = _QuickGradient.apply(x, self.gain)  # type: ignore[no-untyped-call]
            return out
        return _normalised(x, self.gain)[0]


def _normalised(x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms(x) (..., 1) float32."""
    y = x.float()
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)
    return (y * scale * gain).to(x.dtype), scale


class _QuickGradient(torch.autograd.Function):
    """With n = x / rms(x) and d = dy * gain: dx = (d - n mean(d n)) / rms(x), in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        out, scale = _normalised(x, gain)
        ctx.save_for_backward(x, gain, scale)
        return out

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
