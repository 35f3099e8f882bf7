"""Rotary positions (Su et al. 2021; axial over rows and columns of pictures), quick on a processor.

Written as plain operations on halves, a rotation runs over rows of half a head, too short for a
processor's vectors, and its gradient does so twice. In training on a processor both are one
product with tables as wide as a head and one with the halves exchanged; the same numbers to the
bit in fp32, in less time. Evaluation, export and every other device keep the plain form. There are
first derivatives only, and no torch.func.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Rotary(nn.Module):
    """Rotation tables for one modality; `registers` leading positions are not rotated.

    grid 0: positions 0..length-1 on one axis. grid g: length = planes * g*g, half of the head turns
    with the row, half with the column, alike in every plane.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head: int, length: int, *, registers: int, grid: int = 0) -> None:
        super().__init__()
        place = torch.arange(length, dtype=torch.float32)
        place = place % grid**2 if grid else place
        axes = (
            [place] if not grid else [torch.div(place, grid, rounding_mode="floor"), place % grid]
        )
        pairs = head // 2 // len(axes)
        speed = 100.0 ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        angle = torch.cat([axis[:, None] * speed for axis in axes], dim=1)
        angle = torch.cat([torch.zeros(registers, angle.shape[1]), angle])
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, heads, S, head) -> the same, rotated."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        if self.training and x.device.type == "cpu":
            out: Tensor = _QuickRotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
            return out
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., S, head) turned by the angles of the tables (S, head/2)."""
    a, b = x.chunk(2, dim=-1)
    exchanged = torch.cat([b, a], dim=-1)
    exchanged.mul_(torch.cat([-sin, sin], dim=-1))
    return torch.mul(x, torch.cat([cos, cos], dim=-1)).add_(exchanged)


class _QuickRotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(dy, cos, -sin), None, None
