"""What a stage trains: the seam between the loop and a model with its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mmprod.training.shares import Indices, Share


@dataclass(frozen=True)
class Evaluation:
    """Figures of the averaged weights, and a picture (H, W, 3) uint8 that shows them."""

    metrics: dict[str, float]
    picture: npt.NDArray[np.uint8]


class Task(Protocol):
    """One stage's model and data. Built alike on every rank; `evaluate` runs on rank 0 alone."""

    name: str
    model: nn.Module
    """what the backend owns; model(*batch) -> outputs by name, as `losses` takes them"""
    learns_buffers: bool
    """whether its buffers are learned (a codebook), not taken from what was trained before"""
    size: int
    """samples in the training split"""
    weights: npt.NDArray[np.float64] | None
    """sampling weights (size,), or None"""
    codebook: dict[str, Any]
    """what its codebook's tensors mean beyond their shapes (written with the weights), or empty"""
    files: dict[str, str]
    """SHA-256 of files that it learns with beside the data set, by what they hold"""

    def batch(self, share: Share) -> tuple[Tensor, ...]:
        """The tensors of this share on the device: a pure function of (share, data)."""

    def losses(
        self, outputs: dict[str, Tensor], batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """Scalar losses by name, `loss` among them, from what the model gave for a micro-batch of
        the step-th step (from 0). Networks that are not part of the model are used here.
        """

    def keys(self, indices: Indices) -> list[str]:
        """Names of samples, for error messages."""

    def after_step(self, *, learn: bool = True) -> dict[str, float]:
        """Runs after each optimizer step on all ranks (codebook, discriminator); returns readouts,
        equal on all ranks. Without `learn` the batch was not learned from, and nothing moves here
        either. Raises NumericsError, on all ranks alike.
        """

    def state(self) -> dict[str, Tensor]:
        """What is trained outside the model, by name, on the CPU; the same on all ranks. Empty:
        nothing.
        """

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave. Raises IntegrityError when it does not fit."""

    def beside(self) -> list[Tensor]:
        """The tensors of networks beside the model on the device, to be counted."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate a copy of `model` in eval mode, fp32. Deterministic."""

    def better(self, metrics: dict[str, float], step: int) -> float:
        """The figure that selects the best weights, of the evaluation after `step` steps: higher is
        better.
        """

    def core(self, model: nn.Module) -> nn.Module:
        """The part of `model` whose weights are exported (without the losses around it)."""
