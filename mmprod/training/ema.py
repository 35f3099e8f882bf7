"""Exponential moving average of the fp32 weights, in the parts that a backend keeps (fragments.py).

From ZeRO 1 on each rank averages only the weights that it updates; nothing is gathered before an
evaluation or the final file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmprod.training.schedule import ema_decay


class Ema:
    """`average[name]` follows the live tensor of the same name."""

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def update(self, live: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after `step` optimizer steps."""
        weight = 1 - ema_decay(self.decay, step)
        torch._foreach_lerp_(
            [self.average[name] for name in live], [t.detach() for t in live.values()], weight
        )
