"""What executes training: plain PyTorch and DeepSpeed behind the same few methods.

A backend owns the task's model, the optimizer and the numeric precision. It knows nothing of
data, stages or folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmprod.config.schema import TrainConfig

Outputs = dict[str, Tensor]
PREFIX = "inner."


class Backend(Protocol):
    """Forward, backward, one optimizer step; save, load; the weights as they are kept."""

    identity: str
    """what a checkpoint of this backend can be loaded by, e.g.

    `torch` or `deepspeed zero-2 fp32`
    """
    accumulation: int
    """micro-batches (forward, backward) per optimizer step"""
    sharded: bool
    """whether `weights` holds a different part on every rank"""

    def forward(self, *batch: Tensor) -> Outputs:
        """What the model gives for this rank's micro-batch, by name."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch."""

    def step(self, lr: float) -> float:
        """Clip, update the weights with rate `lr`, clear the gradients.

        Returns the gradient norm before clipping.

        When the norm is not finite the weights are left as they were.
        """

    def weights(self) -> dict[str, Tensor]:
        """The live weights by name, as this rank keeps them."""

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights`-shaped tensors of all ranks -> whole tensors on the CPU; empty on ranks other
        than 0.

        Collective.
        """

    def save(self, folder: Path) -> None:
        """Write model (buffers too) and optimizer into `folder`. Collective."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Collective."""


class Autocast(nn.Module):
    """Runs `inner` under autocast, inside what the backend wraps: DeepSpeed switches off an
    autocast around itself.
    """

    def __init__(self, inner: nn.Module, device: str, *, bf16: bool, cache: bool) -> None:
        super().__init__()
        self.inner = inner
        self._device, self._bf16, self._cache = device, bf16, cache

    def forward(self, *batch: Tensor) -> Outputs:
        with torch.autocast(
            self._device, torch.bfloat16, enabled=self._bf16, cache_enabled=self._cache
        ):
            outputs: Outputs = self.inner(*batch)
        return outputs


def parameter_groups(model: nn.Module, cfg: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay acts on matrices and kernels; not on biases, gains and other vectors."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by the name they have in the task's model, without the `Autocast`
    around it.
    """
    return {name.removeprefix(PREFIX): p for name, p in model.named_parameters() if p.requires_grad}


def set_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Write the learning rate into every parameter group."""
    for group in groups:
        group["lr"] = lr
