"""SigLIP between the towers (Zhai et al. 2023, eq. 1), among fixed groups or over all ranks.

Over all ranks the texts go round in a ring (sec. 3.3 there): each rank compares its pictures with
one rank's texts at a time, and no rank ever holds more than its own share and one guest's. The
gradient of the texts travels with them and is whole when they are home again, so the backward pass
sends nothing.

    hop 0: pictures of r with texts of r;  hop 1: with texts of r-1;  ...  then home

A pair counts by how much of both sides is visible (FLIP, Li et al. 2023, masks pictures too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

CONTRAST_GROUP = 8
"""samples that are contrasted with each other: a fixed group, so that the loss is the same for any
number of ranks
"""


@dataclass(frozen=True)
class Neighbours:
    """This rank's place in the ring of `size`, and what sends a tensor to the next rank and gives
    the one of the previous rank.
    """

    rank: int = 0
    size: int = 1
    pass_on: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Seen:
    """Unit vectors (B, E) of one modality, and how much of each sample is seen (B,) in [0, 1]."""

    vectors: Tensor
    share: Tensor


def within_groups(image: Seen, text: Seen, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss among CONTRAST_GROUP samples at a time, a mean over samples."""
    group = min(CONTRAST_GROUP, len(image.vectors))
    a, b = (rearrange(x.vectors, "(g s) e -> g s e", s=group) for x in (image, text))
    seen_a, seen_b = (rearrange(x.share, "(g s) -> g s", s=group) for x in (image, text))
    logits = scale * (a @ b.transpose(1, 2)) + bias
    sign = 2 * torch.eye(group, device=logits.device) - 1
    weight = seen_a[:, :, None] * seen_b[:, None, :]
    return (-F.logsigmoid(sign * logits) * weight).sum((1, 2)).mean() / group


def around_the_ring(
    image: Seen, text: Seen, scale: Tensor, bias: Tensor, neighbours: Neighbours
) -> Tensor:
    """The loss of this rank's pictures with the texts of all ranks, a mean over its pictures; the
    mean of it over ranks is the loss of the global batch. Collective; equal shares.
    """
    with torch.autocast(image.vectors.device.type, enabled=False):
        floats = (tensor.float() for tensor in (image.vectors, text.vectors, scale, bias))
        found: Tensor = _Ring.apply(  # type: ignore[no-untyped-call]
            *floats, _Ends((image.share, text.share), neighbours)
        )
    return found


@dataclass(frozen=True)
class _Ends:
    """What has no gradient: how much is seen of pictures and texts, and the ring."""

    shares: tuple[Tensor, Tensor]
    neighbours: Neighbours


class _Ring(torch.autograd.Function):
    """See `around_the_ring`. All gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        ends: _Ends,
    ) -> Tensor:
        own = torch.eye(len(image), device=image.device)
        (seen, seen_text), neighbours = ends.shares, ends.neighbours
        guest = torch.cat([text, torch.zeros_like(text), seen_text[:, None]], dim=1)
        grad_image, grad_scale = torch.zeros_like(image), torch.zeros_like(scale)
        total, grad_bias = torch.zeros_like(bias), torch.zeros_like(bias)
        for hop in range(neighbours.size):
            words, grad_words, seen_words = torch.split(
                guest, [text.shape[1], text.shape[1], 1], dim=1
            )
            cosine = image @ words.T
            sign = 2 * own - 1 if hop == 0 else -torch.ones_like(own)
            weight = seen[:, None] * seen_words.T
            logits = sign * (scale * cosine + bias)
            total -= (F.logsigmoid(logits) * weight).sum()
            slope = -sign * torch.sigmoid(-logits) * weight
            grad_image += scale * (slope @ words)
            grad_words += scale * (slope.T @ image)  # a view of the guest
            grad_scale += (slope * cosine).sum()
            grad_bias += slope.sum()
            guest = neighbours.pass_on(guest)
        grad_text = guest[:, text.shape[1] : 2 * text.shape[1]]
        ctx.save_for_backward(grad_image, grad_text, grad_scale, grad_bias)
        return total / len(image)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors
        return (*(grad * one / len(saved[0]) for one in saved), None)
