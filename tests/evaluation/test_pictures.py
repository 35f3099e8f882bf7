"""PSNR, SSIM and MS-SSIM: exact on known cases, equal to independent implementations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mmprod.errors import ConfigError
from mmprod.evaluation.pictures import ms_ssim, psnr, scales, ssim

Pixels = npt.NDArray[np.uint8]


def pictures(count: int, side: int, seed: int = 0) -> Pixels:
    """Smooth colours with edges and some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(6 * (rng.normal() * x + rng.normal() * y) + c) for c in range(3 * count)]
    base = np.stack(waves).reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    base = 110 + 70 * base + 40 * (x > y)[None, :, :, None] + rng.normal(0, 4, base.shape)
    return base.clip(0, 255).astype(np.uint8)


def noisy(originals: Pixels, deviation: float) -> Pixels:
    noise = np.random.default_rng(1).normal(0, deviation, originals.shape)
    return (originals + noise).round().clip(0, 255).astype(np.uint8)


def planes(x: Pixels) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).double()


def test_psnr_is_one_figure_for_each_picture() -> None:
    a = np.zeros((3, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0] += 255
    b[1] += 16
    np.testing.assert_allclose(psnr(a, b), [0, 20 * np.log10(255 / 16), 100])


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_equal_pictures_are_wholly_alike_and_noise_makes_them_less(measure: object) -> None:
    assert callable(measure)
    originals = pictures(2, 64)
    found = [measure(originals, noisy(originals, d)) for d in (0.0, 4.0, 16.0)]
    np.testing.assert_allclose(found[0], 1.0)
    assert (found[0] > found[1]).all()
    assert (found[1] > found[2]).all()


def test_ssim_agrees_with_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    originals = pictures(2, 48)
    restored = noisy(originals, 10)
    wanted = [
        structural_similarity(
            a,
            b,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for a, b in zip(originals, restored, strict=True)
    ]
    np.testing.assert_allclose(ssim(originals, restored), wanted, atol=1e-6)


def test_ms_ssim_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    originals = pictures(2, 180)
    restored = noisy(originals, 10)
    wanted = multiscale_structural_similarity_index_measure(
        planes(restored), planes(originals), data_range=255.0, reduction="none"
    )
    # Its coarsest scale counts windows that hang over the border, filled by mirroring.
    np.testing.assert_allclose(ms_ssim(originals, restored), wanted.numpy(), atol=2e-3)


@pytest.mark.parametrize("side", [33, 64])
def test_ms_ssim_is_the_product_of_torchmetrics_parts_within_the_picture(side: int) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure as parts

    originals = pictures(2, side)
    restored = noisy(originals, 10)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: scales(side)])
    a, b = planes(restored), planes(originals)
    wanted = torch.ones(2, dtype=torch.float64)
    for scale, weight in enumerate(weights / weights.sum()):
        about = {"data_range": 255.0, "reduction": "none"}
        _, contrast = parts(a, b, return_contrast_sensitivity=True, **about)
        _, whole = parts(a, b, return_full_image=True, **about)
        similarity = whole[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        wanted *= (similarity if scale == len(weights) - 1 else contrast) ** weight
        a, b = (torch.nn.functional.avg_pool2d(x, 2) for x in (a, b))
    np.testing.assert_allclose(ms_ssim(originals, restored), wanted.numpy(), atol=1e-9)


def test_scales_are_as_many_as_the_window_fits() -> None:
    assert [scales(n) for n in (11, 21, 22, 64, 175, 176, 4000)] == [1, 1, 2, 3, 4, 5, 5]


def test_chunks_do_not_change_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = pictures(5, 32)
    restored = noisy(originals, 8)
    whole = ms_ssim(originals, restored)
    monkeypatch.setattr("mmprod.evaluation.pictures.CHUNK", 2 * 32 * 32)
    np.testing.assert_array_equal(ms_ssim(originals, restored), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    small = np.zeros((1, 10, 40, 3), np.uint8)
    with pytest.raises(ConfigError, match="11 pixels"):
        ssim(small, small)
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(small, small[:, :5])
    with pytest.raises(ValueError, match="uint8"):
        psnr(small, small.astype(np.float32))  # type: ignore[arg-type]
