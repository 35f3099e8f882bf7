"""Bits and quality of a codec: counted as they would be by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprod.config.schema import CodecConfig
from mmprod.evaluation.codec_quality import measure_codec, static_bits
from mmprod.models.codec import build_codec

from .test_pictures import pictures


def test_even_rates_cost_the_logarithm_of_the_book() -> None:
    codes = np.arange(16).reshape(1, 16)
    assert static_bits(codes, np.ones(16), 1) == pytest.approx(4)
    assert static_bits(codes, np.zeros(16), 1) == pytest.approx(4)  # nothing known yet
    assert static_bits(codes, np.ones(16), 2) == pytest.approx(3)  # two books of eight


def test_a_table_that_fits_costs_the_entropy_and_one_that_does_not_costs_more() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    codes = rng.choice(4, size=(1, 20000), p=shares)
    assert static_bits(codes, shares, 1) == pytest.approx(1.75, abs=0.03)
    assert static_bits(codes, shares[::-1], 1) > 2.4
    assert static_bits(np.array([[3]]), np.array([1.0, 0, 0, 0]), 1) == pytest.approx(10)


def test_bits_are_those_of_the_table_in_a_file() -> None:
    from mmprod.bitstream.tables import TOTAL, static_table

    rate = np.random.default_rng(1).random(64).astype(np.float32) ** 4
    rate[:3] = 0
    codes = np.random.default_rng(2).integers(0, 64, (4, 50))
    table = static_table(rate, 1).reshape(-1)
    exact = -np.log2(table[codes] / TOTAL).mean()
    assert static_bits(codes, rate, 1) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    "changes", [{"quantizer": "spherical"}, {"quantizer": "residual", "books": 2}]
)
def test_quality_of_a_codec(changes: dict[str, object]) -> None:
    cfg = CodecConfig.model_validate(
        {"patch": 2, "channels": 8, "multipliers": (1, 2), "codebook_size": 16, **changes}
    )
    torch.manual_seed(0)
    codec = build_codec(cfg).eval()
    originals = pictures(3, 32)
    found = measure_codec(codec, originals, 8)
    planes = cfg.books
    assert found.tokens == 64 * planes
    assert found.fixed_bits == 4
    assert found.fixed_bpp == 4 * 64 * planes / 32**2
    assert found.coded_bits == pytest.approx(4)
    assert 0 < found.seen <= 1
    restored = codec.decode(codec.encode(torch.from_numpy(originals)), (8, 8)).numpy()
    error = np.square(originals.astype(float) - restored).mean(axis=(1, 2, 3))
    assert found.psnr == pytest.approx((10 * np.log10(255**2 / error)).mean())
    total = sum(p.numel() for p in (*codec.encoder.parameters(), *codec.decoder.parameters()))
    assert found.encoder_parameters + found.decoder_parameters == total
