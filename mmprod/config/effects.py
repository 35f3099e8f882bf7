"""Settings that would have no effect beside others are refused, not ignored: whoever sets one
expects something of it. Torch-free; raises ValueError, which the schema reports with the place.
"""

from __future__ import annotations

from pydantic import BaseModel

MOVING = ("spherical", "euclid", "product", "residual")
"""quantizers whose codes move by averages"""
READ_BY = {
    "entropy": ("lfq",),
    "ema_decay": MOVING,
    "restart": MOVING,
    "rate_weight": MOVING,
    "commitment": (*MOVING, "lfq", "simvq"),
}
"""keys of the codec section that some quantizers alone read"""


def check_effects(cfg: BaseModel) -> None:
    """Of the codec section. A key that has its default counts as not set."""
    quantizer = getattr(cfg, "quantizer")  # noqa: B009 - the section is defined above this module
    for key, readers in READ_BY.items():
        if quantizer not in readers and _is_set(cfg, key):
            raise ValueError(f"{key} has no effect on {quantizer}; it belongs to {_any(readers)}")
    if getattr(cfg, "rate_weight") > 0 and not _is_set(cfg, "restart"):  # noqa: B009 - as above
        raise ValueError(
            "rate_weight above 0 lets costly codes go, restart would bring them back: "
            "set restart = false"
        )
    if _is_set(cfg, "gan_start") and not _is_set(cfg, "gan_weight"):
        raise ValueError("gan_start has no effect without gan_weight")


def check_patience(gan_weight: float, patience: int) -> None:
    """With a discriminator no evaluation selects weights (training/codec_task.py)."""
    if gan_weight and patience:
        raise ValueError(
            "codec_train.patience has no effect with codec.gan_weight: what the discriminator "
            "improves shows in no figure of an evaluation, so the last averaged weights count"
        )


def _is_set(cfg: BaseModel, key: str) -> bool:
    return bool(getattr(cfg, key) != type(cfg).model_fields[key].default)


def _any(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
