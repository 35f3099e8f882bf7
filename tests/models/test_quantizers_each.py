"""What each quantizer does beyond the common interface, against its paper's formula."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmprod.config.schema import CodecConfig, Config, Dims, FusionConfig
from mmprod.models.attention import Rotary
from mmprod.models.fusion import build_fusion
from mmprod.models.order import halton_ranks
from mmprod.models.quantizers.fsq import FsqQuantizer
from mmprod.models.quantizers.lfq import entropy_gap
from tests.models.kinds import latents, quantizer, small, trained


def rows(z: torch.Tensor) -> torch.Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@pytest.mark.parametrize("kind", ["euclid", "simvq"])
def test_search_finds_the_nearest_code(kind: str) -> None:
    q = trained(kind)
    z = latents(q, 0, batch=40)
    expected = torch.cdist(rows(z).double(), q.table().double()).argmin(1)
    assert torch.equal(q.encode(z).flatten().long(), expected)
    assert torch.equal(q(z).codes.flatten(), expected)


def test_product_searches_each_group_on_its_own() -> None:
    q = trained("product")
    z = latents(q, 1)
    codes = q.encode(z).view(8, 2, -1).long()
    for plane in range(2):
        group = F.normalize(rows(z[:, 2 * plane : 2 * plane + 2]), dim=1)
        book = q.book.codes[plane * 32 : (plane + 1) * 32]
        expected = torch.cdist(group.double(), book.double()).argmin(1) + plane * 32
        assert torch.equal(codes[:, plane].flatten(), expected)
    torch.testing.assert_close(q.book.codes.norm(dim=1), torch.ones(64))


def test_residual_books_search_what_is_left_and_leave_less() -> None:
    q = trained("residual")
    z = latents(q, 2)
    codes = q.encode(z).view(8, 3, -1).long()
    rest, powers = rows(z).double(), []
    for plane in range(3):
        powers.append(float(rest.square().mean()))
        book = q.book.codes[plane * 32 : (plane + 1) * 32].double()
        expected = torch.cdist(rest, book).argmin(1)
        assert torch.equal(codes[:, plane].flatten(), expected + plane * 32)
        rest = rest - book[expected]
    powers.append(float(rest.square().mean()))
    assert powers[0] > powers[1] > powers[2] > powers[3]


def test_residual_books_are_placed_in_turn() -> None:
    q = quantizer("residual")
    assert not q.book.codes[32:].any()
    for update in range(3):
        q(latents(q, update))
        assert q.update()["restarts"] == 32
        placed = q.book.codes.view(3, 32, 4).abs().sum((1, 2)) > 0
        assert placed.tolist() == [plane <= update for plane in range(3)]


def test_euclidean_codes_are_the_moving_averages_of_the_paper() -> None:
    """VQ-VAE appendix A.1, eq. 6-8, in float64 beside it."""
    q = trained("euclid", ema_decay=0.8, restart=False)
    count = q.book.averages[:, 0].double().numpy().copy()
    total = q.book.averages[:, 1:].double().numpy().copy()
    for step in range(4):
        z = latents(q, 30 + step)
        ids, flat = q.encode(z).flatten().numpy(), rows(z).double().numpy()
        q(z)
        q.update()
        count = 0.8 * count + 0.2 * np.bincount(ids, minlength=32)
        sums = np.zeros((32, 4))
        np.add.at(sums, ids, flat)
        total = 0.8 * total + 0.2 * sums
    used = count > 0.01
    np.testing.assert_allclose(
        q.book.codes.numpy()[used], (total / count[:, None])[used], atol=1e-5
    )


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (4, 7, 2)])
def test_fsq_reaches_every_level_and_numbers_all_combinations(levels: tuple[int, ...]) -> None:
    q = FsqQuantizer(levels).eval()
    grids = [
        torch.arange(n) - n // 2 if n % 2 else torch.arange(-(n // 2), n - n // 2) for n in levels
    ]
    points = set(itertools.product(*(grid.tolist() for grid in grids)))
    radius = torch.tensor([n // 2 for n in levels])
    assert {tuple(row) for row in (q.table() * radius).round().int().tolist()} == points
    assert float(q.table().abs().max()) <= 1
    assert len(points) == math.prod(levels) == q.codebook_size
    sweep = torch.linspace(-8, 8, 4001)
    z = sweep[None, None, :, None].expand(1, len(levels), -1, -1)
    digits = (q(z).latents[0, :, :, 0] * radius[:, None]).round()
    assert [len(d.unique()) for d in digits] == list(levels)
    assert (digits.diff(dim=1) >= 0).all()
    assert (q(torch.zeros(1, len(levels), 1, 1)).latents == 0).all()


def test_fsq_gradient_is_that_of_the_bounded_value() -> None:
    q = quantizer("fsq")
    z = latents(q, 3).requires_grad_()
    q(z).latents.sum().backward()
    probe = latents(q, 3).double().requires_grad_()
    scale = torch.tensor([1.5015, 1.001, 2.002], dtype=torch.float64)[:, None, None]
    shift = torch.tensor([math.atanh(0.5 / 1.5015), 0, 0], dtype=torch.float64)[:, None, None]
    (scale * torch.tanh(probe + shift) / torch.tensor([2, 1, 2])[:, None, None]).sum().backward()
    torch.testing.assert_close(z.grad.double(), probe.grad, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]


def test_lfq_ids_are_the_signs_as_bits() -> None:
    q = quantizer("lfq")
    z = latents(q, 4)
    bits = (rows(z) > 0).long()
    assert torch.equal(q.encode(z).flatten().long(), (bits * 2 ** torch.arange(5)).sum(1))
    assert torch.equal(rows(q(z).latents), 2.0 * bits - 1)


def test_lfq_entropy_term_equals_the_full_softmax() -> None:
    """Against softmax over all 2^5 corners of -|z - c|^2, in float64."""
    q = quantizer("lfq")
    flat = 0.3 * rows(latents(q, 5))
    share = (-torch.cdist(flat.double(), q.table().double()).square()).softmax(1)
    each = -(share * share.log()).sum(1).mean()
    mean = share.mean(0)
    together = -(mean * mean.log()).sum()
    assert float(entropy_gap(flat)) == pytest.approx(float(each - together), abs=1e-5)
    assert entropy_gap(q.table() * 50) == pytest.approx(-math.log(32), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"books": 2}, "spherical has one book"),
        ({"quantizer": "residual"}, "residual needs books of at least 2; with one book it is euc"),
        ({"quantizer": "product"}, "with one book it is spherical"),
        ({"quantizer": "product", "books": 3, "code_dim": 8}, "8 is no multiple"),
        ({"quantizer": "product", "books": 4, "code_dim": 4}, "one channel has two points only"),
        ({"quantizer": "residual", "books": 2, "book": "euclid"}, "belongs to product"),
        ({"levels": (8, 5)}, "levels belong to fsq"),
        ({"quantizer": "fsq"}, r"e\.g\. levels = \[8, 5, 5, 5\], codebook_size = 1000"),
        ({"quantizer": "fsq", "levels": (4, 4), "code_dim": 2}, "make codebook_size 16"),
        ({"quantizer": "fsq", "levels": (1, 4)}, "greater than or equal to 2"),
        ({"quantizer": "lfq", "code_dim": 8}, "makes codebook_size 256, not 1024"),
        ({"quantizer": "lfq", "codebook_size": 256, "gradient": "rotation"}, "lfq rounds each"),
        ({"quantizer": "none"}, "'spherical', 'euclid'"),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValidationError, match=reason):
        CodecConfig(**changes)


def test_several_planes_reach_dims_and_the_fusion_model() -> None:
    config = Config(codec=small("residual"))
    dims = config.dims(40)
    assert (dims.planes, dims.codebook_size, dims.positions) == (3, 96, 3 * dims.grid**2)
    assert config.latent_positions == dims.positions
    ranks = halton_ranks(4, 3)
    assert sorted(ranks) == list(range(48))
    assert [r - 16 for r in ranks[16:32]] == ranks[:16]
    rotary = Rotary(8, 48, registers=2, grid=4)
    assert torch.equal(rotary.cos[2:18], rotary.cos[18:34])
    small_dims = Dims(16, 2, 96, 6, 40, 8, 4, planes=3)
    fusion = build_fusion(FusionConfig(width=16, heads=2), small_dims)
    fusion.adopt_codebook(trained("residual").table())
    codes = torch.full((2, 12), 96)
    image, text = fusion(codes, torch.zeros(2, 6, dtype=torch.int32))
    assert image.shape == (2, 12, 96) and text.shape == (2, 6, 40)
