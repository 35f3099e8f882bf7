"""Integer tables for the range coder: the one routine that makes them, exact on every machine.

    float32 logits or rates --one defined rounding--> integer weights --integers only--> frequencies

Frequencies of S ids sum to 2^24 and each is at least floor(2^16 / S), so that every id can be coded
whatever the prior believes, and no id costs less than -log2(1 - 2^-9) bits: a short payload cannot
claim a huge picture.

*Logits* are first rounded to a grid of 1/8 nat. That costs (1/8)^2 / 24 nats per code, 0.001 bit
(a rounding error is uniform noise, and the loss is half its variance), and makes it rare that noise
in the last bit of a logit moves a table: exp is then an integer look-up, never a float function.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.bitstream.picture import MAX_BOOK
from mmprod.errors import ConfigError, NumericsError

Ints = npt.NDArray[np.int64]
Frequencies = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

TOTAL = 2**24
"""sum of the frequencies of a table: the precision of the range coder"""
UNIFORM_SHARE = 2**16
"""of TOTAL is dealt evenly, the same to each id"""
STEPS = 8
"""logits are rounded to whole multiples of 1/STEPS"""
_WEIGHT_BITS = 32
_LAST = 23 * STEPS
"""an id 23 nats or more below the best has the weight 0: exp(-23) * 2^32 is less than a half"""


def _exponentials() -> Ints:
    """round(2^32 * exp(-i / STEPS)) for i in 0.._LAST, half to even, from exact decimals."""
    context = Context(prec=40)
    powers = (context.exp(Decimal(-i) / STEPS) * 2**_WEIGHT_BITS for i in range(_LAST + 1))
    return np.array([int(p.to_integral_value(ROUND_HALF_EVEN)) for p in powers], np.int64)


EXPONENTIALS = _exponentials()


def frequencies(weights: Ints) -> Frequencies:
    """weights (..., S) int64 in [0, 2^32] -> frequencies (..., S) int32 with sum TOTAL.

    f_i = u + floor(w_i * R / W) with u = floor(UNIFORM_SHARE / S), R = TOTAL - u * S, W the sum of
    the weights; what the floors leave over goes to the largest weight, the first of equals. A row
    of zeros counts as a row of ones. A larger weight never has the smaller frequency.
    """
    size = weights.shape[-1]
    if not 2 <= size <= MAX_BOOK:
        raise ConfigError(f"a table of {size} ids", hint=f"2 to {MAX_BOOK} ids per plane")
    if weights.min() < 0 or weights.max() > 2**_WEIGHT_BITS:
        raise ValueError(f"weights lie in {weights.min()}..{weights.max()}, not in 0..2^32")
    even = UNIFORM_SHARE // size
    rest = TOTAL - even * size
    total = weights.sum(-1, keepdims=True)
    weights = np.where(total == 0, 1, weights)
    shares = weights * rest // np.where(total == 0, size, total)
    best = weights.argmax(-1)[..., None]
    left = rest - shares.sum(-1, keepdims=True)
    np.put_along_axis(shares, best, np.take_along_axis(shares, best, -1) + left, -1)
    table: Frequencies = (shares + even).astype(np.int32)
    return table


def logit_weights(logits: Floats) -> Ints:
    """logits (..., S) float32 -> weights: round(2^32 * exp(-d)), d the distance to the best of the
    rounded logits.

    Rounding is half to even; a product with a power of two, a rounding and a difference of whole
    numbers are the same in every IEEE arithmetic. Raises NumericsError for NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise NumericsError(
            "the prior gave NaN or infinite logits", hint="mmprod parity run BUNDLE checks a graph"
        )
    steps = np.rint(np.clip(logits, -1e30, 1e30) * np.float32(STEPS))
    below = np.minimum(steps.max(-1, keepdims=True) - steps, np.float32(_LAST))
    weights: Ints = EXPONENTIALS[below.astype(np.int32)]
    return weights


def static_table(rate: Floats, planes: int) -> Frequencies:
    """rate (K,) float32, share of each id -> frequencies (planes, K / planes) int32.

    w = floor(2^32 * rate / largest rate of the plane), in float64: a division of IEEE numbers is
    the same everywhere. Raises NumericsError when a rate is negative, NaN or infinite.
    """
    shares = rate.astype(np.float64).reshape(planes, -1)
    if not np.isfinite(shares).all() or shares.min() < 0:
        raise NumericsError(
            "a rate of the codec is negative, NaN or infinite", hint="mmprod ckpt verify RUN"
        )
    largest = shares.max(-1, keepdims=True)
    scaled = shares / np.where(largest == 0, 1, largest)
    return frequencies(np.floor(scaled * 2.0**_WEIGHT_BITS).astype(np.int64))


def check_table(table: npt.NDArray[Any], shape: tuple[int, int]) -> None:
    """Whether `table` is one that `static_table` could have made for codes of this shape (planes,
    S). Raises ConfigError.
    """
    fits = table.dtype == np.int32 and table.shape == shape
    if not fits or (table < UNIFORM_SHARE // shape[1]).any() or (table.sum(-1) != TOTAL).any():
        raise ConfigError(
            f"no static table of {shape[0]} x {shape[1]} ids: {table.dtype} {table.shape}",
            hint=f"int32, each row with the sum {TOTAL}, as static_table makes it",
        )
