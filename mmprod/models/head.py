"""The head and its loss, a fixed number of places at a time.

Logits are the largest tensor of a training step: places times vocabulary, several times over (the
product, its float32 form, the softmax, their gradients). Here no more than PORTION of them exist at
once: of each portion of places only the loss is kept, and the backward pass computes the portion
again (as for blocks, Chen et al. 2016). What is computed is a function of shapes alone, so all
ranks do the same, and a compiler or a plan on tensors without content sees one program. A model
whose logits fit into one portion is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmprod.models.fusion import Stream

PORTION = 2**22
"""logits at a time: 16 MiB in float32"""

_whole = ContextVar("whole", default=False)

Surprise = Callable[..., Tensor]
"""(logits (R, V) float32, *given (R, ...)) -> the loss of each place (R,)"""


def of_places(
    stream: Stream, features: Tensor, loss: Surprise, given: tuple[Tensor, ...]
) -> Tensor:
    """features (B, S, D) that the head reads, given (B, S, ...) -> loss of every place (B, S)."""
    table = stream.table()

    def part(rows: Tensor, *about: Tensor) -> Tensor:
        return loss(stream.predict(rows, table), *about)

    size = max(1, PORTION // stream.vocabulary)
    flat = [tensor.flatten(0, 1) for tensor in (features, *given)]
    if len(flat[0]) <= size or _whole.get():
        return part(*flat).view(features.shape[:2])
    parts = [
        # Nothing here draws random numbers, so their state need not be kept.
        checkpoint(part, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(*(torch.split(tensor, size) for tensor in flat), strict=True)
    ]
    return torch.cat(parts).view(features.shape[:2])


@contextmanager
def in_one_portion() -> Iterator[None]:
    """Within the block nothing is computed a second time: for counting operations."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """logits (R, V), ids (R,) -> (R,) in units of ln(V): about 1 for a model that knows nothing."""
    return F.cross_entropy(logits, ids.long(), reduction="none") / math.log(logits.shape[-1])
