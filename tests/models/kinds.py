"""Small quantizers of every kind, for tests."""

from __future__ import annotations

from typing import Any

import torch

from mmprod.config.schema import CodecConfig
from mmprod.models.quantizers.base import Quantizer
from mmprod.models.quantizers.build import build_quantizer

KINDS: dict[str, dict[str, Any]] = {
    "spherical": {},
    "euclid": {},
    "simvq": {},
    "fsq": {"levels": (4, 3, 5), "codebook_size": 60, "code_dim": 3},
    "lfq": {"code_dim": 5},
    "product": {"books": 2},
    "product-euclid": {"quantizer": "product", "books": 2, "book": "euclid"},
    "residual": {"books": 3},
    "spherical-rotation": {"quantizer": "spherical", "gradient": "rotation"},
}
TURNED = ("spherical", "euclid", "simvq", "product", "product-euclid", "residual")
"""kinds whose gradient may be rotated"""
MOVING = ("spherical", "euclid", "product", "product-euclid", "residual")
"""kinds with a codebook that moves by averages"""


def small(kind: str, **changes: Any) -> CodecConfig:
    """Configuration of a kind: 32 codes a book, 4 channels where the kind leaves it open."""
    return CodecConfig(
        **({"quantizer": kind, "codebook_size": 32, "code_dim": 4} | KINDS[kind] | changes)
    )


def quantizer(kind: str, **changes: Any) -> Quantizer:
    """A fresh quantizer, in training mode."""
    torch.manual_seed(0)
    return build_quantizer(small(kind, **changes)).train()


def trained(kind: str, **changes: Any) -> Quantizer:
    """A quantizer after a few updates on random latents, in training mode."""
    made = quantizer(kind, **changes)
    for step in range(6):
        made(latents(made, step))
        made.update()
    return made


def latents(of: Quantizer, seed: int, batch: int = 8) -> torch.Tensor:
    """z (batch, D, 3, 5), a different one for each seed."""
    return torch.randn(batch, of.dim, 3, 5, generator=torch.Generator().manual_seed(100 + seed))
