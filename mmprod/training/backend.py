"""What executes training: plain PyTorch and DeepSpeed behind the same few methods.

A backend owns the task's model, the optimizer and the numeric precision. It knows nothing of
data, stages or folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmprod.config.schema import TrainConfig
from mmprod.training.fragments import Fragment

Outputs = dict[str, Tensor]
PREFIX = "inner."
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Backend(Protocol):
    """Forward, backward, one optimizer step; weights and optimizer state as they are kept."""

    identity: str
    """what a checkpoint of it can be loaded by: optimizer and kind of weights, e.g. `adamw fp32`"""
    placement: str
    """how its state is divided: `torch`, or `zero-0` to `zero-3`"""
    accumulation: int
    """micro-batches (forward, backward) per optimizer step"""
    sharded: bool
    """whether every rank holds other fragments (ZeRO from 1 on); else all hold the whole"""
    scaled: bool
    """fp16 with a dynamic loss scale: a norm that is not finite is a skipped step, no error"""

    def forward(self, *batch: Tensor) -> Outputs:
        """What the model gives for this rank's micro-batch, by name."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch."""

    def step(self, lr: float) -> float:
        """Clip, update the weights with rate `lr`, clear the gradients.

        Returns the gradient norm before clipping.

        When the norm is not finite the weights are left as they were. Raises NumericsError when
        gradients overflow at the smallest loss scale.
        """

    def skip(self) -> None:
        """Instead of `step`: drop the gradients of this step. Collective."""

    def fragments(self) -> dict[str, Fragment]:
        """This rank's part of the weights and of the optimizer's state by parameter name; live, and
        there before the first step.
        """

    def weights(self) -> dict[str, Tensor]:
        """The live fp32 weights of `fragments` by name."""

    def scalars(self) -> dict[str, float]:
        """Step counts and the state of the loss scale, equal on all ranks."""

    def restored(self, scalars: Mapping[str, float]) -> None:
        """Go on from fragments that were overwritten in place, and from `scalars` of another
        backend of the same identity. Collective.
        """

    def storages(self) -> dict[str, list[Tensor]]:
        """The tensors that live now, by kind: `weights` (what the model computes with), `masters`,
        `moments`, `gradients`, `buckets`. See footprint.py.
        """

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors shaped like the fragments, of all ranks -> whole fp32 tensors on the CPU of rank
        0; empty elsewhere.

        Collective.
        """


class Autocast(nn.Module):
    """Runs `inner` under autocast, inside what the backend wraps: DeepSpeed switches off an
    autocast around itself.
    """

    def __init__(self, inner: nn.Module, device: str, precision: str, *, cache: bool) -> None:
        super().__init__()
        self.inner = inner
        self._device, self._dtype, self._cache = device, AUTOCAST.get(precision), cache

    def forward(self, *batch: Tensor) -> Outputs:
        with torch.autocast(
            self._device,
            self._dtype or torch.bfloat16,
            enabled=self._dtype is not None,
            cache_enabled=self._cache,
        ):
            outputs: Outputs = self.inner(*batch)
        return outputs


def parameter_groups(model: nn.Module, cfg: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay acts on matrices and kernels; not on biases, gains and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if _dimensions(p) >= 2]
    vectors = [p for p in trained if _dimensions(p) < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter: one that ZeRO 3 has cut up looks empty and knows its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by the name they have in the task's model, without the `Autocast`
    around it.
    """
    return {name.removeprefix(PREFIX): p for name, p in model.named_parameters() if p.requires_grad}


def set_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Write the learning rate into every parameter group."""
    for group in groups:
        group["lr"] = lr
