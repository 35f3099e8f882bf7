"""How like its original a restored picture is: PSNR, SSIM, MS-SSIM of 8-bit pictures. Torch-free.

SSIM: Wang, Bovik, Sheikh and Simoncelli 2004, section III-B: a Gaussian window of 11 x 11 pixels
with standard deviation 1.5 that lies wholly inside the picture, K1 = 0.01, K2 = 0.03.
MS-SSIM: Wang, Simoncelli and Bovik 2003: contrast and structure of every scale, luminance of the
coarsest, scales made by averaging 2 x 2 pixels. Five scales need 176 pixels a side; a smaller
picture is compared on as many as its size allows, with their weights brought to a sum of one, so
figures of different picture sizes are not comparable. Colour: the mean over the three channels.

Every function takes original and restored pictures (B, H, W, 3) uint8 and returns one float64
figure for each picture, (B,). All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mmprod.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Figures = npt.NDArray[np.float64]
Compare = Callable[[Figures, Figures], Figures]

WINDOW, DEVIATION = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang et al. 2003, section 4, finest scale first."""
EXACT = 100.0
"""dB that an exact copy counts, where the formula has no value."""
CHUNK = 2**20
"""pixels that are compared at a time: what bounds the memory"""


def psnr(pictures: Pixels, restored: Pixels) -> Figures:
    """Peak signal-to-noise ratio in dB; an exact copy counts 100."""
    _check(pictures, restored, side=1)
    floor = 255.0**2 * 10 ** (-EXACT / 10)
    errors = [
        np.square(a.astype(np.float64) - b).mean() for a, b in zip(pictures, restored, strict=True)
    ]
    return np.array([10 * math.log10(255.0**2 / max(error, floor)) for error in errors])


def ssim(pictures: Pixels, restored: Pixels) -> Figures:
    """Structural similarity, at most 1. Raises ConfigError for pictures smaller than the window."""
    _check(pictures, restored, side=WINDOW)
    return _chunked(lambda a, b: _similarity(a, b)[0], pictures, restored)


def ms_ssim(pictures: Pixels, restored: Pixels) -> Figures:
    """Structural similarity over `scales(side)` scales, in [0, 1]; raises as `ssim` does."""
    _check(pictures, restored, side=WINDOW)
    count = scales(min(pictures.shape[1:3]))
    weights = np.array(SCALE_WEIGHTS[:count]) / sum(SCALE_WEIGHTS[:count])

    def compare(a: Figures, b: Figures) -> Figures:
        product = np.ones(len(a))
        for scale, weight in enumerate(weights):
            whole, structure = _similarity(a, b)
            part = whole if scale == count - 1 else structure
            product *= np.maximum(part, 0.0) ** weight
            a, b = _halved(a), _halved(b)
        return product

    return _chunked(compare, pictures, restored)


def scales(side: int) -> int:
    """How many scales of MS-SSIM a picture of this shorter side has room for, 1 to 5."""
    count = 0
    while side >> count >= WINDOW and count < len(SCALE_WEIGHTS):
        count += 1
    return count


def _similarity(a: Figures, b: Figures) -> tuple[Figures, Figures]:
    """a, b (B, H, W, 3) float64 -> mean of SSIM, and of its contrast and structure part: (B,)."""
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a * mean_a
    var_b = _blur(b * b) - mean_b * mean_b
    cov = _blur(a * b) - mean_a * mean_b
    structure = (2 * cov + C2) / (var_a + var_b + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    axes = (1, 2, 3)
    return (luminance * structure).mean(axis=axes), structure.mean(axis=axes)


def _blur(x: Figures) -> Figures:
    """x (B, H, W, 3) -> weighted means under every whole window: (B, H - 10, W - 10, 3)."""
    places = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(places**2) / (2 * DEVIATION**2))
    window /= window.sum()
    for axis in (1, 2):
        length = x.shape[axis] - WINDOW + 1
        slices = [np.take(x, range(i, i + length), axis=axis) for i in range(WINDOW)]
        x = np.sum([w * part for w, part in zip(window, slices, strict=True)], axis=0)
    return x


def _halved(x: Figures) -> Figures:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    even = x[:, :height, :width]
    total = even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    return np.asarray(total / 4)


def _chunked(compare: Compare, pictures: Pixels, restored: Pixels) -> Figures:
    step = max(1, CHUNK // (pictures.shape[1] * pictures.shape[2]))
    parts = [
        compare(
            pictures[i : i + step].astype(np.float64), restored[i : i + step].astype(np.float64)
        )
        for i in range(0, len(pictures), step)
    ]
    return np.concatenate(parts)


def _check(pictures: Pixels, restored: Pixels, side: int) -> None:
    for value in (pictures, restored):
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3 or not len(value):
            raise ValueError(f"not (B, H, W, 3) uint8 pictures: {value.dtype} {value.shape}")
    if pictures.shape != restored.shape:
        raise ValueError(f"{pictures.shape} and {restored.shape} cannot be compared")
    if min(pictures.shape[1:3]) < side:
        raise ConfigError(
            f"SSIM needs pictures of {side} pixels a side or more, not {pictures.shape[1:3]}",
            hint="measure larger pictures, or use PSNR",
        )
