"""The sampling steps: order, schedules, and a draw that follows the distribution it is given."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.models.order import CERTAIN, halton_ranks, image_bounds, text_shares
from mmprod.models.unmask import ImageUnmask, TextUnmask, draw
from mmprod.runners.host_steps import next_words

DIMS = Dims(16, 4, 11, 6, 9, 8)
SAMPLER = SamplerConfig(image_steps=4, text_steps=3)


@pytest.mark.parametrize("grid", [1, 2, 4, 8, 16])
def test_halton_ranks_are_a_permutation_that_spreads_out(grid: int) -> None:
    ranks = halton_ranks(grid)
    assert sorted(ranks) == list(range(grid * grid))
    if grid >= 8:
        first = [divmod(cell, grid) for cell in range(grid * grid) if ranks[cell] < 16]
        quadrants = {(row * 2 // grid, column * 2 // grid) for row, column in first}
        assert len(quadrants) == 4


@pytest.mark.parametrize(("positions", "steps"), [(64, 8), (64, 64), (256, 16), (4, 1), (5, 4)])
def test_schedules_rise_strictly_from_none_to_all(positions: int, steps: int) -> None:
    bounds = image_bounds(positions, steps)
    assert bounds[0] == 0 and bounds[-1] == positions and len(bounds) == steps + 1
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_shares_of_a_text_grow_and_leave_nothing() -> None:
    shares = [Fraction(*share) for share in text_shares(8)]
    assert all(0 < a < b for a, b in itertools.pairwise(shares))
    assert shares[-1] == 1
    left = math.prod(1 - share for share in shares[:4])
    assert left == 1 - Fraction(4, 8) ** 2


def test_draws_follow_the_distribution() -> None:
    """Chi-square against the exact categorical distribution: 200,000 draws over 50 ids."""
    count, size = 200_000, 50
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator)
    uniform = torch.rand(1, count, generator=generator)
    ids = draw(logits.expand(1, count, size), uniform, 1.0, 0.0)[0]
    expected = torch.softmax(logits.double(), 0) * count
    seen = torch.bincount(ids.long(), minlength=size).double()
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert chi_square < 85.4  # the 99.9 % point for 49 degrees of freedom


@pytest.mark.slow
def test_a_million_draws_over_a_large_codebook_follow_the_distribution() -> None:
    """Chi-square at K = 16384 in fp32: the cumulative sum is long, a draw must still be fair."""
    count, size, part = 1_000_000, 16_384, 125
    generator = torch.Generator().manual_seed(0)
    logits = 0.5 * torch.randn(size, generator=generator)
    expected = torch.softmax(logits.double(), 0) * count
    assert expected.min() > 5
    seen = torch.zeros(size, dtype=torch.int64)
    for _ in range(count // part):
        uniform = torch.rand(1, part, generator=generator)
        ids = draw(logits.expand(1, 1, size), uniform, 1.0, 0.0)  # one row for all of the draws
        seen += torch.bincount(ids[0].long(), minlength=size)
    assert seen.sum() == count
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    freedom = size - 1
    wide = 2 / (9 * freedom)  # Wilson and Hilferty 1931
    assert chi_square < freedom * (1 - wide + 3.09 * wide**0.5) ** 3  # the 99.9 % point
    assert chi_square > freedom * (1 - wide - 3.09 * wide**0.5) ** 3  # nor suspiciously even


def test_draw_is_the_inverse_cdf() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).expand(1, 5, 3)
    uniform = torch.tensor([[0.0, 0.49, 0.51, 0.76, 1 - 2**-24]])
    assert draw(logits, uniform, 1.0, 0.0).tolist() == [[0, 0, 1, 2, 2]]


def test_unlikely_ids_are_never_drawn() -> None:
    logits = torch.log(torch.tensor([0.02, 0.96, 0.02])).expand(1, 1000, 3)
    uniform = torch.linspace(0, 1 - 2**-24, 1000)[None]
    assert set(draw(logits, uniform, 1.0, 0.05).flatten().tolist()) == {1}


def test_low_temperature_takes_the_likeliest() -> None:
    logits = torch.randn(1, 40, 7, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(1, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw(logits, uniform, 1e-4, 0.0).long(), logits.argmax(-1))


def test_image_steps_fill_every_place_once() -> None:
    unmask = ImageUnmask(DIMS, SAMPLER)
    codes = torch.full((2, 16), 11, dtype=torch.int32)
    noise = torch.rand(2, 4, 16, generator=torch.Generator().manual_seed(3))
    left = 16
    for step in range(4):
        logits = torch.randn(2, 16, 11, generator=torch.Generator().manual_seed(step))
        after = unmask(torch.tensor([step]), logits, logits, codes, noise)
        known = codes != 11
        assert torch.equal(after[known], codes[known])
        codes = after
        left = int((codes == 11).sum()) // 2
        assert left == 16 - image_bounds(16, 4)[step + 1]
    assert left == 0


def test_image_steps_leave_known_places_alone() -> None:
    unmask = ImageUnmask(DIMS, SAMPLER)
    codes = torch.full((1, 16), 11, dtype=torch.int32)
    codes[:, ::3] = 4
    logits = torch.zeros(1, 16, 11)
    logits[..., 7] = 50.0
    for step in range(4):
        codes = unmask(torch.tensor([step]), logits, logits, codes, torch.rand(1, 4, 16))
    assert codes[0].tolist() == [4 if place % 3 == 0 else 7 for place in range(16)]


def test_guidance_pulls_towards_the_condition() -> None:
    given = torch.zeros(1, 16, 11)
    given[..., 5] = 2.0
    noise = torch.rand(1, 4, 16, generator=torch.Generator().manual_seed(4))
    codes = torch.full((1, 16), 11, dtype=torch.int32)

    def hits(guidance: float) -> int:
        unmask = ImageUnmask(DIMS, SAMPLER.model_copy(update={"guidance": guidance}))
        free = torch.zeros_like(given)
        return int((unmask(torch.tensor([3]), given, free, codes, noise) == 5).sum())

    assert hits(4.0) > hits(0.0)


def logits_of(strengths: list[float]) -> torch.Tensor:
    """(1, L, 9), place i leaning to id i by a logit."""
    logits = torch.zeros(1, len(strengths), 9)
    for place, strength in enumerate(strengths):
        logits[0, place, place] = strength
    return logits


def known(tokens: torch.Tensor) -> list[int]:
    return (tokens != 9).nonzero()[:, 1].tolist()


def test_text_steps_take_what_is_certain_and_else_the_left() -> None:
    unmask = TextUnmask(DIMS, SAMPLER)
    logits = logits_of([1.0, 9.0, 0.0, 8.0, 2.0, 3.0])
    noise = torch.full((1, 3, 6), 0.5)
    tokens = torch.full((1, 6), 9, dtype=torch.int32)
    tokens = unmask(torch.tensor([0]), logits, tokens, noise)
    assert known(tokens) == [0, 1, 3]  # of the four uncertain places a ninth, so one
    tokens = unmask(torch.tensor([1]), logits, tokens, noise)
    assert known(tokens) == [0, 1, 2, 3, 4]  # of three places 3/8, so two
    tokens = unmask(torch.tensor([2]), logits, tokens, noise)
    assert bool((tokens != 9).all())
    assert tokens[0, [1, 3]].tolist() == [1, 3]


def test_certainty_is_a_probability() -> None:
    unmask = TextUnmask(DIMS, SAMPLER)
    border = math.log(8 * CERTAIN / (1 - CERTAIN))
    logits = logits_of([0.0, 0.0, border - 0.01, border + 0.01, 0.0, 0.0])
    tokens = torch.full((1, 6), 9, dtype=torch.int32)
    tokens = unmask(torch.tensor([0]), logits, tokens, torch.zeros(1, 3, 6))
    assert known(tokens) == [0, 3]


def test_known_tokens_stay() -> None:
    unmask = TextUnmask(DIMS, SAMPLER)
    tokens = torch.tensor([[5, 9, 5, 9, 9, 5]], dtype=torch.int32)
    after = unmask(torch.tensor([2]), logits_of([9.0] * 6), tokens, torch.zeros(1, 3, 6))
    assert after[0].tolist() == [5, 1, 5, 3, 4, 5]


def test_the_host_fills_in_the_same_places() -> None:
    generator = torch.Generator().manual_seed(0)
    unmask = TextUnmask(DIMS, SAMPLER)
    tokens = torch.full((40, 6), 9, dtype=torch.int32)
    for step in range(SAMPLER.text_steps):
        logits = 3 * torch.randn(40, 6, 9, generator=generator)
        noise = torch.rand(40, SAMPLER.text_steps, 6, generator=generator)
        after = unmask(torch.tensor([step]), logits, tokens, noise)
        masked = (tokens == 9).numpy()
        chosen = next_words(logits.numpy(), masked, step, SAMPLER.text_steps)
        np.testing.assert_array_equal(chosen, (after != tokens).numpy())
        tokens = after
    assert bool((tokens != 9).all())
