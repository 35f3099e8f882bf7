"""Whether a layer takes the passes that are written for training on a processor.

One question for all of them (norms, by_hand.py), so that a plan for another device can say no.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_elsewhere = ContextVar("elsewhere", default=False)


def trains_on_processor(module: nn.Module, x: Tensor) -> bool:
    """In training, on a CPU, and not while a compiler looks on, which fuses for itself."""
    # In this order: a compiler cannot trace the second.
    if torch.compiler.is_compiling() or _elsewhere.get():
        return False
    return module.training and x.device.type == "cpu"


@contextmanager
def as_elsewhere() -> Iterator[None]:
    """Within the block layers run as on any other device, though the tensors are a CPU's."""
    before = _elsewhere.set(True)
    try:
        yield
    finally:
        _elsewhere.reset(before)
