"""Every term of L_reconstruction against a plain reference, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from mmprod.config.schema import CodecConfig
from mmprod.models.codec import build_codec
from mmprod.models.losses import (
    ARCHIVE,
    NATURAL,
    NATURAL_PERCEPTUAL,
    SCALE_WEIGHTS,
    TERMS,
    loss_weights,
    ms_ssim,
    reconstruction_terms,
    weighted_sum,
)


def photographs(size: int) -> torch.Tensor:
    """Three cuts of a photograph, (3, 3, size, size) in [-1, 1]."""
    whole = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 127.5 - 1
    return torch.stack([whole[:, y : y + size, y : y + size] for y in (0, 120, 256)])


def worse(x: torch.Tensor, amount: float = 0.2) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + amount * noise).clamp(-1, 1)


def by_torchmetrics(y: torch.Tensor, x: torch.Tensor, scales: int) -> torch.Tensor:
    """MS-SSIM put together from torchmetrics' SSIM, cut to places where the window is whole.

    Its own MS-SSIM (1.9) cuts the borders off at all scales but the last, where it mirrors the
    picture.
    """
    x, y, exponents = (x + 1) / 2, (y + 1) / 2, torch.tensor(SCALE_WEIGHTS[:scales])
    values = []
    for _ in range(scales - 1):
        _, contrast = ssim(y, x, data_range=1.0, reduction="none", return_contrast_sensitivity=True)
        values.append(contrast)
        x, y = torch.nn.functional.avg_pool2d(x, 2), torch.nn.functional.avg_pool2d(y, 2)
    _, whole = ssim(y, x, data_range=1.0, reduction="none", return_full_image=True)
    values.append(whole[..., 5:-5, 5:-5].mean((1, 2, 3)))
    powers = [v**e for v, e in zip(values, exponents / exponents.sum(), strict=True)]
    return torch.stack(powers).prod(0)


def test_ms_ssim_agrees_with_torchmetrics_at_256_pixels() -> None:
    x = photographs(256)
    for amount in (0.02, 0.2, 0.6):
        y = worse(x, amount)
        torch.testing.assert_close(ms_ssim(y, x), by_torchmetrics(y, x, 5), atol=2e-5, rtol=0)
        theirs = multiscale_structural_similarity_index_measure(
            (y + 1) / 2, (x + 1) / 2, data_range=1.0, reduction="none"
        )
        torch.testing.assert_close(ms_ssim(y, x), theirs, atol=3e-3, rtol=0)


@pytest.mark.parametrize(("size", "scales"), [(64, 3), (32, 2), (16, 1), (175, 4), (176, 5)])
def test_ms_ssim_uses_the_scales_that_the_window_fits_into(size: int, scales: int) -> None:
    x = photographs(size)
    theirs = by_torchmetrics(worse(x), x, scales)
    torch.testing.assert_close(ms_ssim(worse(x), x), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (8, 8), (10, 64), (33, 47)])
def test_terms_are_finite_and_0_for_equal_pictures_of_any_size(shape: tuple[int, int]) -> None:
    x = photographs(64)[:, :, : shape[0], : shape[1]]
    for name, value in reconstruction_terms(x, x, TERMS).items():
        assert float(value) == pytest.approx(0, abs=1e-6), name
    other = (-x).requires_grad_()
    total = torch.stack(list(reconstruction_terms(other, x, TERMS).values())).sum()
    total.backward()
    assert total.isfinite() and other.grad is not None and other.grad.isfinite().all()


def test_l1_l2_and_gradient_against_numpy() -> None:
    x, y = photographs(64), worse(photographs(64))
    terms = reconstruction_terms(y, x, TERMS)
    d = (y - x).double().numpy()
    assert float(terms["l1"]) == pytest.approx(np.abs(d).mean(), rel=1e-5)
    assert float(terms["l2"]) == pytest.approx(np.square(d).mean(), rel=1e-5)
    values = []
    for _ in range(3):
        values.append(sum(np.abs(np.diff(d, axis=axis)).mean() for axis in (2, 3)))
        d = d.reshape(*d.shape[:2], d.shape[2] // 2, 2, d.shape[3] // 2, 2).mean((3, 5))
    assert float(terms["gradient"]) == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("name", list(TERMS))
def test_each_term_grows_with_the_damage(name: str) -> None:
    x = photographs(64)
    values = [float(TERMS[name](worse(x, amount), x)) for amount in (0.01, 0.1, 0.4)]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", list(TERMS))
def test_gradients_are_right(name: str) -> None:
    x = photographs(256)[:1, :, 100:124, 100:124].double()
    y = worse(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: TERMS[name](y, x), y, fast_mode=True)


def test_terms_are_fp32_under_autocast_and_means_over_the_batch() -> None:
    x, y = photographs(64), worse(photographs(64))
    plain = reconstruction_terms(y, x, TERMS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = reconstruction_terms(y.bfloat16().float(), x, TERMS)
    parts = [reconstruction_terms(y[i : i + 1], x[i : i + 1], TERMS) for i in range(3)]
    for name, value in plain.items():
        assert cast[name].dtype == torch.float32
        torch.testing.assert_close(cast[name], value, atol=3e-3, rtol=0)
        torch.testing.assert_close(sum(part[name] for part in parts) / 3, value)
    with torch.autocast("cpu", torch.bfloat16):
        exact = reconstruction_terms(y, x, TERMS)
    assert all(torch.equal(exact[name], plain[name]) for name in TERMS)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, ARCHIVE),
        ({"loss": "natural"}, NATURAL),
        ({"loss": "natural", "perceptual": "vgg16.pth"}, NATURAL_PERCEPTUAL),
    ],
)
def test_the_codec_reports_its_terms_by_name_and_their_weighted_sum(changes, weights) -> None:
    tiny = {"patch": 2, "channels": 8, "multipliers": (1, 2), "codebook_size": 32, "code_dim": 4}
    cfg = CodecConfig.model_validate(tiny | changes)
    assert loss_weights(cfg) == weights
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    codec = build_codec(cfg)
    out = codec(pixels)
    assert set(out) == {"loss", "encoder", "reconstruction", "restored", *weights}
    torch.testing.assert_close(out["reconstruction"], weighted_sum(out, weights))
    out["reconstruction"].backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.encoder.parameters())
