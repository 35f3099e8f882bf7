"""The quantizer that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from mmprod.config.schema import CodecConfig
from mmprod.models.quantizers.base import Quantizer
from mmprod.models.quantizers.book import Rules
from mmprod.models.quantizers.euclid import EuclidQuantizer
from mmprod.models.quantizers.fsq import FsqQuantizer
from mmprod.models.quantizers.lfq import LfqQuantizer
from mmprod.models.quantizers.product import ProductQuantizer
from mmprod.models.quantizers.residual import ResidualQuantizer
from mmprod.models.quantizers.simvq import SimvqQuantizer
from mmprod.models.quantizers.spherical import SphericalQuantizer


def build_quantizer(cfg: CodecConfig) -> Quantizer:
    """A quantizer with a fresh codebook."""
    return _BUILDERS[cfg.quantizer](cfg)


def _spherical(cfg: CodecConfig) -> Quantizer:
    return SphericalQuantizer(
        cfg.codebook_size,
        cfg.code_dim,
        Rules(cfg.ema_decay, cfg.restart, unit=True, rate=cfg.rate_weight),
        commitment=cfg.commitment,
        gradient=cfg.gradient,
    )


def _euclid(cfg: CodecConfig) -> Quantizer:
    return EuclidQuantizer(
        cfg.codebook_size,
        cfg.code_dim,
        Rules(cfg.ema_decay, cfg.restart, unit=False, rate=cfg.rate_weight),
        commitment=cfg.commitment,
        gradient=cfg.gradient,
    )


def _product(cfg: CodecConfig) -> Quantizer:
    return ProductQuantizer(
        cfg.codebook_size,
        cfg.code_dim,
        Rules(cfg.ema_decay, cfg.restart, unit=cfg.book == "spherical", rate=cfg.rate_weight),
        books=cfg.books,
        commitment=cfg.commitment,
        gradient=cfg.gradient,
    )


def _residual(cfg: CodecConfig) -> Quantizer:
    return ResidualQuantizer(
        cfg.codebook_size,
        cfg.code_dim,
        Rules(cfg.ema_decay, cfg.restart, unit=False, in_turn=True, rate=cfg.rate_weight),
        books=cfg.books,
        commitment=cfg.commitment,
        gradient=cfg.gradient,
    )


def _fsq(cfg: CodecConfig) -> Quantizer:
    return FsqQuantizer(cfg.levels)


def _lfq(cfg: CodecConfig) -> Quantizer:
    return LfqQuantizer(cfg.code_dim, commitment=cfg.commitment, entropy=cfg.entropy)


def _simvq(cfg: CodecConfig) -> Quantizer:
    return SimvqQuantizer(
        cfg.codebook_size, cfg.code_dim, commitment=cfg.commitment, gradient=cfg.gradient
    )


_BUILDERS: dict[str, Callable[[CodecConfig], Quantizer]] = {
    "spherical": _spherical,
    "euclid": _euclid,
    "fsq": _fsq,
    "lfq": _lfq,
    "simvq": _simvq,
    "product": _product,
    "residual": _residual,
}
