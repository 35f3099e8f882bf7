"""Attention and SwiGLU of a training step on a processor, their gradients written out by hand.

The same sums as the plain operations of `attention.py`, in fewer passes over memory. There a
product of matrices this small waits less for its multiplications than for results being written to
memory that is not in a cache; autograd writes one for each operation, and joins the gradients of
parts (queries, keys, values; gate and value) by copying them. Here parts are written where they
belong, and what is in a cache is worked on in place. SwiGLU keeps less for the backward pass: gate
and value, not their product.

Used in training on a processor only: evaluation, export and other devices run the plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmprod.models.rms_norm import inverse_rms


def attention(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """RMS-normalised, rotated queries and keys; softmax(q k^T / sqrt(head)) v.

    qkv (B, S, 3 D); gain (S, 2, 1, head) of queries and keys at each place, as weights may differ
    between the modalities of a sequence; cos, sin (S, head / 2) -> (B, S, D), of the type of qkv.
    """
    out: Tensor = _Attention.apply(qkv, gain, cos, sin, heads)  # type: ignore[no-untyped-call]
    return out


def swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x (..., D), up (2 H, D), down (D, H) -> (silu(x A) * x B) C with A and B the halves of up.

    In the type of autocast where it is on, as linear layers compute.
    """
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
    out: Tensor = _SwiGLU.apply(x, up, down)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """With n = x / rms(x), y = R(n * gain) for queries and keys alike, R the rotation."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int
    ) -> Tensor:
        batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        head = width // heads
        parts = qkv.view(batch, length, 3, heads, head)
        precise = torch.promote_types(qkv.dtype, torch.float32)
        gain, cos, sin = gain.to(precise), cos.to(precise), sin.to(precise)
        with torch.autocast("cpu", enabled=False):
            x = parts[:, :, :2].to(precise)
            scale = inverse_rms(x)
            n = x * scale
            y = _rotated(_by_head(n), gain.permute(1, 2, 0, 3)[:, None], cos, sin)
            q, k = y.to(qkv.dtype).view(2, batch * heads, length, head).unbind(0)
            v = parts[:, :, 2].transpose(1, 2).reshape(batch * heads, length, head)
            scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=head**-0.5)
            weights = torch.softmax(scores, -1)  # half types: in fp32 inside the kernel
            mixed = torch.bmm(weights, v).view(batch, heads, length, head)
        ctx.save_for_backward(n, scale, q, k, v, weights, gain, cos, sin)
        return mixed.transpose(1, 2).reshape(batch, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor) -> tuple[Tensor | None, ...]:
        n, scale, q, k, v, weights, gain, cos, sin = ctx.saved_tensors
        batch, length, _, heads, head = n.shape
        with torch.autocast("cpu", enabled=False):
            d_out = d_mixed.reshape(batch, length, heads, head).transpose(1, 2)
            d_out = d_out.reshape(v.shape)
            d_qkv = q.new_empty(batch, length, 3, heads, head)
            d_v = torch.bmm(weights.transpose(1, 2), d_out)
            d_qkv[:, :, 2] = d_v.view(batch, heads, length, head).transpose(1, 2)
            d_weights = torch.bmm(d_out, v.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_y = q.new_empty(2, *q.shape)
            none, share = q.new_empty(()), head**-0.5
            torch.baddbmm(none, d_scores, k, beta=0, alpha=share, out=d_y[0])
            torch.baddbmm(none, d_scores.transpose(1, 2), q, beta=0, alpha=share, out=d_y[1])
            d_y = d_y.to(n.dtype).view(2, batch, heads, length, head)
            d_n = torch.empty_like(n)
            _rotate_back(d_y, cos, sin, out=_by_head(d_n))
            product = d_n * n
            d_gain = product.sum((0, 3))[:, :, None] if ctx.needs_input_grad[1] else None
            along = product.mul_(gain).sum(-1, keepdim=True).div_(head)
            d_n.mul_(gain).addcmul_(n, along, value=-1)
            torch.mul(d_n, scale, out=d_qkv[:, :, :2])
        return d_qkv.flatten(2), d_gain, None, None, None


def _by_head(x: Tensor) -> Tensor:
    """(B, S, 2, heads, head) -> a view (2, B, heads, S, head)."""
    return x.permute(2, 0, 3, 1, 4)


def _rotated(n: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """R(n * gain): n (2, B, heads, S, head), gain (2, 1, 1, S, head) -> contiguous."""
    half = n.shape[-1] // 2
    out = n.new_empty(n.shape)
    torch.mul(n, torch.cat([cos, cos], -1) * gain, out=out)
    out[..., :half].addcmul_(n[..., half:], sin * gain[..., half:], value=-1)
    out[..., half:].addcmul_(n[..., :half], sin * gain[..., :half])
    return out


def _rotate_back(y: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> None:
    half = y.shape[-1] // 2
    torch.mul(y, torch.cat([cos, cos], -1), out=out)
    out[..., :half].addcmul_(y[..., half:], sin)
    out[..., half:].addcmul_(y[..., :half], sin, value=-1)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        hidden = down.shape[1]
        with torch.autocast("cpu", enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            gate, value = rows @ up[:hidden].t(), rows @ up[hidden:].t()
            out = F.silu(gate).mul_(value) @ down.t()
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, gate, value, up, down)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, value, up, down = ctx.saved_tensors
        of_x, of_up, of_down = ctx.needs_input_grad
        hidden = down.shape[1]
        d_x = d_up = d_down = None
        with torch.autocast("cpu", enabled=False):
            d = d_out.reshape(-1, d_out.shape[-1])
            opened = F.silu(gate)
            if of_down:
                d_down = d.t() @ (opened * value)
            if of_x or of_up:
                d_gate = d @ down
                d_value = opened.mul_(d_gate)
                d_gate.mul_(value)
                torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
            if of_up:
                d_up = torch.empty_like(up)
                torch.mm(d_gate.t(), rows, out=d_up[:hidden])
                torch.mm(d_value.t(), rows, out=d_up[hidden:])
            if of_x:
                d_x = d_gate @ up[:hidden]
                d_x = torch.addmm(d_x, d_value, up[hidden:], out=d_x).view(d_out.shape)
        return d_x, d_up, d_down
