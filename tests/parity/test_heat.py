"""Maps of where outputs differ: right place, right size, merged in order."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.graphs.spec import Role
from mmprod.parity.heat import LINES, WIDTH, Heat, heat_of


def test_a_changed_colour_shows_at_its_place_with_both_pictures_of_its_sample() -> None:
    reference = np.full((3, 4, 5, 3), 100, np.uint8)
    candidate = reference.copy()
    candidate[1, 2, 3, 0] = 107
    candidate[2, 0, 0, 1] = 98
    heat = heat_of("pixels", reference, candidate)
    assert heat.values.shape == (4, 5) and heat.values.sum() == 9
    assert heat.values[2, 3] == 7 and heat.values[0, 0] == 2
    assert heat.pair is not None and heat.severity == 7
    assert (heat.pair[0] == reference[1]).all() and (heat.pair[1] == candidate[1]).all()


def test_pictures_of_many_cases_keep_the_largest_and_the_worst_pair() -> None:
    plain = np.zeros((1, 2, 2, 3), np.uint8)
    one, two = plain.copy(), plain.copy()
    one[0, 0, 0, 0], two[0, 1, 1, 2] = 9, 4
    merged = heat_of("pixels", plain, one).merge(heat_of("pixels", plain, two))
    assert merged.values.tolist() == [[9, 0], [0, 4]]
    assert merged.pair is not None and (merged.pair[1] == one[0]).all()


@pytest.mark.parametrize("role", ["codes", "tokens"])
def test_ids_give_the_share_of_samples_that_differ(role: Role) -> None:
    reference = np.zeros((4, 3), np.int32)
    candidate = reference.copy()
    candidate[:2, 1] = 5
    assert heat_of(role, reference, candidate).values.tolist() == [[0, 0.5, 0]]


def test_logits_and_vectors_give_the_largest_gap_of_a_position() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    moved = logits.copy()
    moved[1, 2, 3] = -0.25
    assert heat_of("logits", logits, moved).values.tolist() == [[0, 0, 0.25]]
    vector = np.ones((2, 3), np.float32)
    assert heat_of("embedding", vector, vector * 2).values.tolist() == [[1, 1, 1]]


def test_cases_are_lines_until_there_are_too_many() -> None:
    heat = Heat(np.zeros((1, 3), np.float32))
    for count in range(1, 2 * LINES):
        heat = heat.merge(Heat(np.full((1, 3), count, np.float32)))
    assert heat.values.shape == (LINES, 3)
    assert heat.values[:-1, 0].tolist() == list(range(LINES - 1))
    assert heat.values[-1, 0] == 2 * LINES - 1, "the last line is the maximum of the rest"


def test_long_outputs_lose_no_difference() -> None:
    reference = np.zeros((1, 5 * WIDTH + 3), np.int32)
    for place in (0, 700, reference.shape[1] - 1):
        candidate = reference.copy()
        candidate[0, place] = 1
        values = heat_of("codes", reference, candidate).values
        assert values.shape == (1, WIDTH) and values.sum() == 1
