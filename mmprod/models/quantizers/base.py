"""What every quantizer offers to the codec, the training loop and the exported graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Readout = dict[str, float]


@dataclass(frozen=True)
class Quantized:
    """Result of quantizing latents in training.

    latents (B, D, h, w): exactly the chosen code vectors in value, the encoder's gradient straight
    through. codes (B, h*w) int64. encoder_loss: scalar, the quantizer's share of L_encoder.
    """

    latents: Tensor
    codes: Tensor
    encoder_loss: Tensor


class Quantizer(Protocol):
    """Latents (B, D, h, w) <-> codes (B, N), row-major over the grid."""

    codebook_size: int
    dim: int

    def __call__(self, z: Tensor) -> Quantized:
        """Quantize for training; gathers the statistics that `update` will use."""

    def encode(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, N) int32. Exports as one MatMul and one ArgMax."""

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) integer in [0, K) -> latents (B, D, h, w) float32. Exports as one Gather."""

    def update(self) -> Readout:
        """Move the codebook after an optimizer step. All ranks call it together; afterwards all
        hold the same bits.

        Returns usage (share of codes seen lately), perplexity, restarts.
        """
