"""Exponential moving average of the weights, fp32, kept in the form the backend keeps the weights.

With sharded weights each rank averages its own shard; nothing is gathered before an evaluation or
the final file.
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
        self.average = {name: tensor.detach().float().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def update(self, live: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after `step` optimizer steps."""
        weight = 1 - ema_decay(self.decay, step)
        for name, tensor in live.items():
            self.average[name].lerp_(tensor.detach().float(), weight)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Replace the averages by saved ones of the same names and shapes (a mismatch is a KeyError
        or RuntimeError).
        """
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
