"""Which sizes of a codec fit its quantizer. Torch-free; raises ValueError, which the schema reports
with the place of the section.
"""

from __future__ import annotations

import math
from typing import Protocol


class _Codec(Protocol):
    """The keys that are read here."""

    @property
    def quantizer(self) -> str: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def code_dim(self) -> int: ...
    @property
    def books(self) -> int: ...
    @property
    def book(self) -> str: ...
    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def gradient(self) -> str: ...


FSQ_LEVELS = ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5))
"""The recommended levels for about 2^8 to 2^16 codes (Mentzer et al. 2024, table 1)."""

LARGEST = 2**20
"""ids of all books; above 2^24 they would also not be exact as float32, which fsq and lfq sum in"""


def check_quantizer(cfg: _Codec) -> None:
    """Refuse combinations that mean nothing, by name and with what would fit."""
    name = cfg.quantizer
    if cfg.books * cfg.codebook_size > LARGEST:
        raise ValueError(
            f"books * codebook_size = {cfg.books * cfg.codebook_size} ids are more than {LARGEST}: "
            "every graph holds the table of all ids, and the fusion model a likelihood for each"
        )
    if cfg.books > 1 and name not in ("product", "residual"):
        raise ValueError(f"{name} has one book: books = {cfg.books} needs product or residual")
    if cfg.books == 1 and name in ("product", "residual"):
        alone = cfg.book if name == "product" else "euclid"
        raise ValueError(f"{name} needs books of at least 2; with one book it is {alone}")
    if cfg.book != "spherical" and name != "product":
        raise ValueError(f"book = {cfg.book!r} belongs to product; {name} has its own kind")
    if cfg.levels and name != "fsq":
        raise ValueError(f"levels belong to fsq; {name} has codebook_size and code_dim alone")
    if cfg.gradient == "rotation" and name in ("fsq", "lfq"):
        raise ValueError(
            f"gradient = 'rotation' turns a latent onto its code; {name} rounds each channel by "
            "itself and goes with 'straight'"
        )
    if name == "product":
        _check_product(cfg)
    elif name == "fsq":
        _check_fsq(cfg)
    elif name == "lfq" and cfg.codebook_size != 2**cfg.code_dim:
        raise ValueError(
            f"lfq gives one bit per channel: code_dim {cfg.code_dim} makes codebook_size "
            f"{2**cfg.code_dim}, not {cfg.codebook_size}"
        )


def _check_product(cfg: _Codec) -> None:
    if cfg.code_dim % cfg.books:
        raise ValueError(
            f"product cuts code_dim into {cfg.books} equal groups, and {cfg.code_dim} is no "
            "multiple of that"
        )
    if cfg.book == "spherical" and cfg.code_dim == cfg.books:
        raise ValueError(
            "a spherical book of one channel has two points only: raise code_dim, or book = "
            "'euclid'"
        )


def _check_fsq(cfg: _Codec) -> None:
    if not cfg.levels:
        near = min(FSQ_LEVELS, key=lambda levels: abs(math.log(_size(levels) / cfg.codebook_size)))
        raise ValueError(
            f"fsq needs levels, e.g. levels = {list(near)}, codebook_size = {_size(near)}, "
            f"code_dim = {len(near)}"
        )
    if (_size(cfg.levels), len(cfg.levels)) != (cfg.codebook_size, cfg.code_dim):
        raise ValueError(
            f"fsq levels {list(cfg.levels)} make codebook_size {_size(cfg.levels)} and code_dim "
            f"{len(cfg.levels)}, not {cfg.codebook_size} and {cfg.code_dim}"
        )


def _size(levels: tuple[int, ...]) -> int:
    return math.prod(levels)
