"""Which loss keys of the codec section go together."""

from __future__ import annotations

from typing import Protocol


class _Codec(Protocol):
    """The keys that are read here."""

    @property
    def loss(self) -> str: ...
    @property
    def perceptual(self) -> str: ...
    @property
    def perceptual_heads(self) -> str: ...
    @property
    def gan_weight(self) -> float: ...


def check_losses(cfg: _Codec) -> None:
    """Refuse keys that would have no effect. Raises ValueError, which the schema reports."""
    given = {
        "perceptual": cfg.perceptual,
        "perceptual_heads": cfg.perceptual_heads,
        "gan_weight": cfg.gan_weight,
    }
    for key, value in given.items():
        if value and cfg.loss == "archive":
            raise ValueError(
                f"{key} has no place in loss = archive, which measures distortion only; "
                "set loss = natural"
            )
    if cfg.perceptual_heads and not cfg.perceptual:
        raise ValueError("perceptual_heads needs perceptual, the file of the network under them")
