"""Transformer blocks of the fusion model: self-attention within one stream, and jointly over two.

RMSNorm, RMS-normalised queries and keys (Dehghani et al. 2023, sec. 2),
rotary positions (Su et al. 2021; axial over rows and columns for pictures), SwiGLU (Shazeer 2020),
joint attention with weights per modality (MM-DiT, Esser et al. 2024, sec. 4). No attention mask
anywhere: captions are padded with ordinary tokens, so every call stays on the fused path of each
backend.

In training on a processor `by_hand` reads the weights of some layers without calling them: a hook
on one of those (SwiGLU's, norms of queries and keys) is not called there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmprod.models import by_hand
from mmprod.models.processor import trains_on_processor
from mmprod.models.rms_norm import RMSNorm


class SwiGLU(nn.Module):
    """x (..., D) -> (silu(x A) * x B) C with hidden width 8/3 D, rounded up to a multiple of 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = -(-8 * width // 3 // 32) * 32
        self.up = nn.Linear(width, 2 * self.hidden, bias=False)
        self.down = nn.Linear(self.hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_processor(self, x):
            return by_hand.swiglu(x, self.up.weight, self.down.weight)
        gate, value = self.up(x).split(self.hidden, dim=-1)
        out: Tensor = self.down(F.silu(gate) * value)
        return out


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
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Projections(nn.Module):
    """Norm, queries, keys, values and output projection of one stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = nn.Linear(width, width, bias=False)

    def queries_keys_values(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, D) -> q, k, v (B, heads, S, head)."""
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b s (three h d) -> three b h s d", three=3, h=self.heads
        ).unbind(0)
        return rotary(self.q_norm(q)), rotary(self.k_norm(k)), v

    def gains(self, length: int) -> Tensor:
        """Those of queries and keys, for each of `length` places (S, 2, 1, head)."""
        pair = torch.stack([self.q_norm.gain, self.k_norm.gain])
        return pair[None, :, None].expand(length, -1, -1, -1)

    def merge(self, mixed: Tensor) -> Tensor:
        """mixed (B, heads, S, head) -> (B, S, D)."""
        out: Tensor = self.out(rearrange(mixed, "b h s d -> b s (h d)"))
        return out


class FeedForward(nn.Module):
    """x + SwiGLU(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.mlp(self.norm(x)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head)) v for q, k, v (B, heads, S, head).

    On a GPU the fused kernel; on a CPU, and so in every exported graph, the three operations by
    name: for these short sequences the CPU's fused backward is about four times slower than they
    are, and compilers find the pattern themselves.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


class Block(nn.Module):
    """One-stream block, x (B, S, D) -> (B, S, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Projections(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        if trains_on_processor(self, x):
            return _trained(self.attention, self.feed_forward, x, rotary.cos, rotary.sin)
        q, k, v = self.attention.queries_keys_values(x, rotary)
        x = x + self.attention.merge(attend(q, k, v))
        out: Tensor = self.feed_forward(x)
        return out


def _trained(
    attention: Projections, feed_forward: FeedForward, x: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """A block with one set of weights, x (B, S, D) -> (B, S, D), by hand."""
    qkv, gains = attention.qkv(attention.norm(x)), attention.gains(x.shape[1])
    mixed = by_hand.attention(qkv, gains, cos, sin, attention.heads)
    out: Tensor = feed_forward(x + attention.out(mixed))
    return out


class JointBlock(nn.Module):
    """Two streams, one attention: weights per modality, or one set for both when `shared`.

    image (B, S, D), text (B, R, D) -> the same shapes.
    """

    def __init__(self, width: int, heads: int, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.image_attention = Projections(width, heads)
        self.image_feed_forward = FeedForward(width)
        self.text_attention = self.image_attention if shared else Projections(width, heads)
        self.text_feed_forward = self.image_feed_forward if shared else FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, image_rotary: Rotary, text_rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        if trains_on_processor(self, image):
            return self._trained(image, text, image_rotary, text_rotary)
        split = image.shape[1]
        of_image = self.image_attention.queries_keys_values(image, image_rotary)
        of_text = self.text_attention.queries_keys_values(text, text_rotary)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_image, of_text, strict=True))
        mixed = attend(q, k, v)
        image = image + self.image_attention.merge(mixed[:, :, :split])
        text = text + self.text_attention.merge(mixed[:, :, split:])
        return self.image_feed_forward(image), self.text_feed_forward(text)

    def _trained(
        self, image: Tensor, text: Tensor, image_rotary: Rotary, text_rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        """By hand; with shared weights both modalities go through as one sequence, in fewer and
        larger products. Inference keeps them apart: it often needs one of them only.
        """
        lengths = [image.shape[1], text.shape[1]]
        cos = torch.cat([image_rotary.cos, text_rotary.cos])
        sin = torch.cat([image_rotary.sin, text_rotary.sin])
        of_image, of_text = self.image_attention, self.text_attention
        if self.shared:
            x = torch.cat([image, text], dim=1)
            x = _trained(of_image, self.image_feed_forward, x, cos, sin)
            image, text = torch.split(x, lengths, dim=1)
            return image, text
        qkv = [of_image.qkv(of_image.norm(image)), of_text.qkv(of_text.norm(text))]
        gains = [of_image.gains(lengths[0]), of_text.gains(lengths[1])]
        mixed = by_hand.attention(torch.cat(qkv, 1), torch.cat(gains), cos, sin, of_image.heads)
        mixed_image, mixed_text = torch.split(mixed, lengths, dim=1)
        image = image + of_image.out(mixed_image)
        text = text + of_text.out(mixed_text)
        return self.image_feed_forward(image), self.text_feed_forward(text)
