"""The members of a codec sweep: every combination asked for, as whole configurations.

A member is the base configuration with the quantizer's keys and the factor changed. Some quantizers
fix sizes by themselves: fsq takes the published levels nearest in number of codes, lfq has one
channel for each bit. Nothing else of the base is touched, so members differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from mmprod.config.load import load_config
from mmprod.config.quantizers import FSQ_LEVELS
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.config.schema import CodecConfig, Config

Keys = dict[str, object]
PATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Grid:
    """What a sweep varies. `sizes`: codes of one book; `factors`: pixels per latent position."""

    sizes: Sequence[int]
    dims: Sequence[int]
    quantizers: Sequence[str]
    factors: Sequence[int] = ()
    books: int = 2


@dataclass(frozen=True)
class Member:
    """One codec to train."""

    name: str
    config: Config

    @property
    def codes(self) -> int:
        """K over all books."""
        return self.config.codec.books * self.config.codec.codebook_size

    @property
    def curve(self) -> str:
        """What members that differ in the codebook's size only have in common."""
        codec = self.config.codec
        books = f" x {codec.books}" if codec.books > 1 else ""
        dim = "" if codec.quantizer in ("fsq", "lfq") else f", D {codec.code_dim}"
        return f"{codec.quantizer}{books}{dim}, f {codec.factor}"


def members(name: str, overrides: Sequence[str], grid: Grid) -> list[Member]:
    """All members, smallest first, each once.

    Raises ConfigError that names every combination that means nothing, before anything trains.
    """
    base = load_config(name, overrides)
    unknown = [q for q in grid.quantizers if q not in _KEYS]
    if unknown:
        raise ConfigError(
            f"there is no quantizer {', '.join(unknown)}", hint=f"choose from {', '.join(_KEYS)}"
        )
    found: dict[str, Member] = {}
    refused = []
    factors = grid.factors or (base.codec.factor,)
    for factor, quantizer, dim, size in product(factors, grid.quantizers, grid.dims, grid.sizes):
        try:
            keys = _levels(base.codec, factor) | _KEYS[quantizer](size, dim, grid.books)
            config = load_config(name, [*overrides, *(f"{k}={v}" for k, v in keys.items())])
        except ConfigError as error:
            refused.append(f"{quantizer}, {size} codes, D {dim}, factor {factor}: {error.message}")
            continue
        member = Member(_name(config.codec), config)
        found.setdefault(member.name, member)
    if refused:
        raise ConfigError(
            "these members mean nothing:\n" + "\n".join(dict.fromkeys(refused)),
            hint="leave them out; several sweeps into folders of their own can be run one by one",
        )
    return sorted(found.values(), key=lambda m: (-m.config.codec.factor, m.codes, m.name))


def _book(quantizer: str) -> Callable[[int, int, int], Keys]:
    def keys(size: int, dim: int, books: int) -> Keys:
        return _plain(quantizer, size, dim)

    return keys


def _books(quantizer: str) -> Callable[[int, int, int], Keys]:
    def keys(size: int, dim: int, books: int) -> Keys:
        return {**_plain(quantizer, size, dim), "codec.books": books}

    return keys


def _fsq(size: int, dim: int, books: int) -> Keys:
    """The published levels whose number of codes is nearest; D is their length."""
    levels = min(FSQ_LEVELS, key=lambda each: abs(math.log(math.prod(each) / size)))
    if not 0.8 < math.prod(levels) / size < 1.25:
        known = ", ".join(str(math.prod(each)) for each in FSQ_LEVELS)
        raise ConfigError(f"fsq has published levels for {known} codes")
    return {**_plain("fsq", math.prod(levels), len(levels)), "codec.levels": list(levels)}


def _lfq(size: int, dim: int, books: int) -> Keys:
    """One channel for each bit; what is no power of two is left to the configuration to refuse."""
    return _plain("lfq", size, max(2, round(math.log2(size))))


def _plain(quantizer: str, size: int, dim: int) -> Keys:
    return {
        "codec.quantizer": quantizer,
        "codec.codebook_size": size,
        "codec.code_dim": dim,
        "codec.books": 1,
        "codec.levels": [],
    }


_KEYS: Mapping[str, Callable[[int, int, int], Keys]] = {
    "spherical": _book("spherical"),
    "euclid": _book("euclid"),
    "simvq": _book("simvq"),
    "fsq": _fsq,
    "lfq": _lfq,
    "product": _books("product"),
    "residual": _books("residual"),
}
"""The configuration's keys of a quantizer with (codes of one book, D, books)."""


def _levels(codec: CodecConfig, factor: int) -> Keys:
    """Keys that give the codec this factor: another patch if that is enough, else more levels (the
    last multiplier again) or fewer.
    """
    if factor == codec.factor:
        return {}
    multipliers = list(codec.multipliers)
    for count in (len(multipliers), *range(len(multipliers) + 1, 9), *range(1, len(multipliers))):
        patch = factor / 2 ** (count - 1)
        if patch in PATCHES:
            more = [multipliers[-1]] * max(0, count - len(multipliers))
            return {
                "codec.patch": int(patch),
                "codec.multipliers": (multipliers + more)[:count],
            }
    raise ConfigError(f"no codec has {factor} pixels per position: powers of two only")


def _name(codec: CodecConfig) -> str:
    books = f"-x{codec.books}" if codec.books > 1 else ""
    name = f"{codec.quantizer}{books}-k{codec.codebook_size}-d{codec.code_dim}-f{codec.factor}"
    return name
