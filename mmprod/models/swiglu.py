"""SwiGLU (Shazeer 2020), whose gate is quick to differentiate on a processor.

Plain operations keep silu(gate) for the backward pass and join the gradients of the two halves by
a copy of the widest tensor of a block. Here silu is computed again, and both gradients are written
where they belong; the forward pass is the same, to the bit. Evaluation, export and every other
device keep plain operations. There are first derivatives only, and no torch.func.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SwiGLU(nn.Module):
    """x (..., D) -> (silu(x A) * x B) C with hidden width 8/3 D, rounded up to a multiple of 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = -(-8 * width // 3 // 32) * 32
        self.up = nn.Linear(width, 2 * self.hidden, bias=False)
        self.down = nn.Linear(self.hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = self.up(x)
        if self.training and both.device.type == "cpu":
            out: Tensor = self.down(_QuickGate.apply(both))  # type: ignore[no-untyped-call]
        else:
            gate, value = both.split(self.hidden, dim=-1)
            out = self.down(F.silu(gate) * value)
        return out


class _QuickGate(torch.autograd.Function):
    """[gate, value] (..., 2H) -> silu(gate) * value (..., H)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, value = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, value = both.chunk(2, dim=-1)
        d_both = torch.empty_like(both)
        d_gate, d_value = d_both.chunk(2, dim=-1)
        torch.mul(dy, F.silu(gate), out=d_value)
        torch.ops.aten.silu_backward(dy * value, gate, grad_input=d_gate)
        return d_both
