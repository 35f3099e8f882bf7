"""Entropy-constrained search: a code costs its squared distance and its bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprod.config.schema import CodecConfig
from mmprod.models.quantizers.base import WINDOW, Quantizer
from mmprod.models.quantizers.book import LARGEST_ERROR
from mmprod.models.quantizers.build import build_quantizer
from mmprod.models.quantizers.euclid import EuclidQuantizer

SIZE, DIM = 64, 4
BATCH, SIDE = 64, 32


def latents(step: int) -> Tensor:
    """(BATCH, DIM, SIDE, SIDE): mostly small vectors, some large ones."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(BATCH, DIM, SIDE, SIDE, generator=generator)
    large = torch.rand(BATCH, 1, SIDE, SIDE, generator=generator) < 0.2
    return z * torch.where(large, 1.0, 0.3)


def trained(
    weight: float, updates: int = 25, batch: int = BATCH, **settings: Any
) -> tuple[Quantizer, float, float]:
    """A quantizer after some updates, its mean squared error and bits per latent position."""
    torch.manual_seed(0)
    base: dict[str, Any] = {"quantizer": "euclid", "codebook_size": SIZE, "code_dim": DIM}
    base |= {"ema_decay": 0.8}
    cfg = CodecConfig(**base | settings, restart=False, rate_weight=weight)
    quantizer = build_quantizer(cfg).train()
    for step in range(updates):
        quantizer(latents(step)[:batch])
        quantizer.update()
    z = latents(99)
    found = quantizer.eval()(z)
    shares = quantizer.rate.view(quantizer.planes, -1) * quantizer.planes
    entropy = -(shares * shares.clamp_min(1e-12).log2()).sum()
    return quantizer, float((found.latents - z).square().mean()), float(entropy)


@pytest.mark.parametrize("settings", [{}, {"quantizer": "residual", "books": 2}])
def test_a_larger_weight_gives_fewer_bits_and_more_error(settings: dict[str, Any]) -> None:
    results = [trained(weight, **settings) for weight in (0.0, 1.0, 3.0)]
    errors = [error for _, error, _ in results]
    bits = [bits for *_, bits in results]
    assert errors == sorted(errors)
    assert bits == sorted(bits, reverse=True)
    assert bits[0] - bits[2] > 0.5


@pytest.mark.parametrize(("updates", "batch"), [(25, BATCH), (200, BATCH // 16)])
def test_a_weight_below_zero_evens_the_usage_of_codes(updates: int, batch: int) -> None:
    """Also where an update has as many tokens as the window."""
    even, error, bits = trained(-1.0, updates, batch)
    _, least, plain = trained(0.0, updates, batch)
    assert plain + 0.1 < bits <= math.log2(SIZE)
    assert least < error < 1.2 * least
    assert isinstance(even, EuclidQuantizer) and even.book.bonus is not None
    rare, common = int(even.rate.argmin()), int(even.rate.argmax())
    assert even.book.bonus[rare] > even.book.bonus[common] > 0
    CodecConfig(rate_weight=-1)  # goes with restarts


def test_bits_are_better_spent_than_by_a_smaller_codebook() -> None:
    _, error, bits = trained(0.5)
    _, coarse_error, coarse_bits = trained(0.0, codebook_size=SIZE // 2)
    assert bits < coarse_bits
    assert error < coarse_error


def test_search_minimizes_distance_and_bits() -> None:
    quantizer, error, _ = trained(0.5)
    assert isinstance(quantizer, EuclidQuantizer)
    book, z = quantizer.book, latents(7)[:2]
    assert book.bonus is not None
    rows = z.flatten(2).transpose(1, 2).reshape(-1, DIM)
    cost = torch.cdist(rows, book.codes).square() - 2 * book.bonus
    ids = quantizer.encode(z).flatten().long()
    chosen = cost[torch.arange(len(ids)), ids]
    assert torch.allclose(chosen, cost.amin(1), atol=1e-5)
    nearest = torch.cdist(rows, book.codes).argmin(1)
    assert (nearest != ids).any()
    # The price of a bit: 2 ln 2 / D of the error, times the weight.
    shares = quantizer.rate + 0.5 / WINDOW
    bits = -(shares / shares.sum()).log2()
    per_position = error * DIM
    price = 0.5 * 2 * math.log(2) / DIM * per_position
    assert torch.allclose(-2 * book.bonus, price * bits, rtol=0.1)


def test_a_codebook_that_does_not_fit_yet_sets_no_absurd_price() -> None:
    cfg = CodecConfig(
        quantizer="euclid", codebook_size=4, code_dim=DIM, restart=False, rate_weight=1
    )
    quantizer = build_quantizer(cfg).train()
    assert isinstance(quantizer, EuclidQuantizer)
    quantizer.book.codes.mul_(100)
    for _ in range(WINDOW // (BATCH * SIDE * SIDE) + 1):
        quantizer(latents(0))
        quantizer.update()
    power = float(latents(0).square().sum(1).mean())
    assert quantizer.book.bonus is not None
    limit = 2 * math.log(2) / DIM * LARGEST_ERROR * power * math.log2(2 * WINDOW + 4) / 2
    assert -limit <= float(quantizer.book.bonus.min()) < 0


def test_without_a_weight_there_is_no_bonus_to_save() -> None:
    quantizer = build_quantizer(CodecConfig())
    assert not [name for name in quantizer.state_dict() if "bonus" in name]
    assert "bonus" in "".join(trained(1.0)[0].state_dict())


def test_rate_weight_needs_restart_off_and_a_moving_codebook() -> None:
    with pytest.raises(ValueError, match="set restart = false"):
        CodecConfig(rate_weight=1)
    with pytest.raises(ValueError, match="rate_weight has no effect on simvq"):
        CodecConfig(quantizer="simvq", rate_weight=1)
