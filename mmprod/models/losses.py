"""The terms of L_reconstruction = -log p(x|z') up to constants: how far the restored picture is
from x.

l1        Laplace likelihood: mean |x' - x|
l2        Gauss likelihood: mean (x' - x)^2
ms_ssim   1 - MS-SSIM (Wang, Simoncelli and Bovik 2003): structure at several scales
gradient  mean |difference of finite differences| at several scales: edges
perceptual, generator: need a network beside the codec (perceptual.py, discriminator.py) and are
          added where that network lives, outside the model that the training backend owns.

All terms are means over pictures of the batch, so a batch cut into equal parts has the mean of the
parts' losses. All are computed in fp32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprod.config.schema import CodecConfig

Term = Callable[[Tensor, Tensor], Tensor]

ARCHIVE = {"l2": 4.0, "ms_ssim": 0.1}
"""distortion only, for compression; an L1 term cost 0.8 dB (docs/adr/0014)"""
NATURAL = {"l1": 1.0, "gradient": 1.0, "ms_ssim": 0.2}
"""without perceptual weights: edges and structure in their place"""
NATURAL_PERCEPTUAL = {"l1": 1.0}
"""with them; the perceptual term itself has `PERCEPTUAL_WEIGHT`"""
PERCEPTUAL_WEIGHT = 1.0

WINDOW, SIGMA = 11, 1.5
"""MS-SSIM: side of the Gaussian window (smaller only for pictures smaller than that), its width"""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""MS-SSIM: exponents of Wang 2003, finest scale first; divided by their sum when fewer are used"""
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
FLOOR = 0.01
"""MS-SSIM: smallest similarity of one scale; a power below 1 has no finite gradient at 0"""
GRADIENT_SCALES = 3


def loss_weights(cfg: CodecConfig) -> dict[str, float]:
    """Weight of every term that the codec computes itself."""
    if cfg.loss == "archive":
        return ARCHIVE
    return NATURAL_PERCEPTUAL if cfg.perceptual else NATURAL


def reconstruction_terms(
    restored: Tensor, x: Tensor, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The unweighted terms named in `weights`. restored, x (B, 3, H, W) in [-1, 1] -> scalars."""
    with torch.autocast(restored.device.type, enabled=False):
        restored, x = restored.float(), x.float()
        return {name: TERMS[name](restored, x) for name in weights}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * term over `weights`; scalar."""
    return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity. a, b (B, C, H, W) in [-1, 1] -> (B,) in (0, 1].

    Gaussian window of 11 pixels without padding, K1 = 0.01, K2 = 0.03, means over channels and
    places, scales by 2x2 averages. Five scales from 176 pixels per side on, fewer below: a scale
    is used while the window fits into it (64 pixels: three).
    """
    a, b = (a + 1) / 2, (b + 1) / 2
    side = min(a.shape[2:])
    window = min(WINDOW, side - 1 + side % 2)
    count = sum(side // 2**scale >= window for scale in range(len(SCALE_WEIGHTS)))
    exponents = [w / sum(SCALE_WEIGHTS[:count]) for w in SCALE_WEIGHTS[:count]]
    result = torch.ones(len(a), device=a.device, dtype=a.dtype)
    for scale, exponent in enumerate(exponents):
        luminance, contrast = _similarity(a, b, window)
        last = scale == count - 1
        value = (luminance * contrast if last else contrast).mean((1, 2, 3))
        result = result * value.clamp_min(FLOOR) ** exponent
        if not last:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result


def _similarity(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The luminance and the contrast-structure map of SSIM at one scale."""
    mean_a, squares, product = _blur(torch.stack([a, a * a + b * b, a * b]), window)
    mean_b = _blur(b, window)
    both, means = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    contrast = (2 * (product - both) + SSIM_C2) / (squares - means + SSIM_C2)
    return (2 * both + SSIM_C1) / (means + SSIM_C1), contrast


def _blur(maps: Tensor, window: int) -> Tensor:
    """Gaussian means over every whole window, (..., H, W) -> (..., H - window + 1, W - window + 1).

    Written as two banded matrix products: on CPUs many times faster than a depthwise convolution,
    and on GPUs never rounded to TF32, which would drown the variances.
    """
    rows, columns = (_band(side, window, maps) for side in maps.shape[-2:])
    return rows @ (maps @ columns.T)


def _band(side: int, window: int, like: Tensor) -> Tensor:
    """(side - window + 1, side): row i holds the Gaussian window at places i to i + window - 1."""
    places = torch.arange(window, device=like.device, dtype=like.dtype) - (window - 1) / 2
    gauss = torch.exp(-places.square() / (2 * SIGMA**2))
    count = side - window + 1
    band = torch.zeros(count, side, device=like.device, dtype=like.dtype)
    for place, value in enumerate(gauss / gauss.sum()):
        band.diagonal(place)[:count] = value
    return band


def _ms_ssim_loss(restored: Tensor, x: Tensor) -> Tensor:
    return 1 - ms_ssim(restored, x).mean()


def _gradient_loss(restored: Tensor, x: Tensor) -> Tensor:
    """Mean over scales (2x2 averages) of the L1 distance of the finite differences, both axes."""
    difference, values = restored - x, []
    for _ in range(GRADIENT_SCALES):
        values.append(sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3)))
        if min(difference.shape[2:]) < 4:
            break
        difference = F.avg_pool2d(difference, 2)
    return torch.stack([torch.as_tensor(value) for value in values]).mean()


TERMS: dict[str, Term] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "ms_ssim": _ms_ssim_loss,
    "gradient": _gradient_loss,
}
