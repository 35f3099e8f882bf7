"""Agreement counts what was asked for and can be seen, and nothing else."""

from __future__ import annotations

import pytest

from mmprod.data.attributes import HIDDEN
from mmprod.errors import ConfigError
from mmprod.evaluation.agreement import (
    attribute_agreement,
    exact_agreement,
    pair_agreement,
)


def test_hidden_and_absent_wishes_are_not_scored_but_absent_findings_are_wrong() -> None:
    wanted = [
        {"hat": "hat", "hair_color": HIDDEN, "beard": "none"},
        {"hat": "none", "hair_color": "red"},
        {"hat": "none", "hair_color": "gray"},
    ]
    got = [
        {"hat": "hat", "hair_color": "red", "beard": "none"},
        {"hat": "turban", "hair_color": HIDDEN, "beard": "beard"},
        {"hat": "none"},
    ]
    result = attribute_agreement(wanted, got, ("hat", "hair_color", "beard", "glasses"))
    assert result == {"hat": 2 / 3, "hair_color": 0.0, "beard": 1.0, "overall": 3 / 6}


def test_equal_sets_agree_fully_and_only_the_named_attributes_count() -> None:
    face = {"hat": "none", "beard": "beard", "background": "blue"}
    assert attribute_agreement([face], [face])["overall"] == 1.0
    assert attribute_agreement([face], [face | {"background": "pink"}])["overall"] == 1.0
    assert attribute_agreement([face], [face | {"beard": "none"}])["overall"] == 0.5


@pytest.mark.parametrize(
    ("wanted", "got"), [([{"hat": "hat"}], []), ([{}], [{"hat": "hat"}]), ([], [])]
)
def test_nothing_to_score_is_an_error_not_a_perfect_score(
    wanted: list[dict[str, str]], got: list[dict[str, str]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        attribute_agreement(wanted, got)
    assert caught.value.hint


def test_exact_means_every_visible_value_of_a_sample() -> None:
    wanted = [
        {"hat": "hat", "hair_color": HIDDEN, "beard": "none", "glasses": "none"},
        {"hat": "none", "hair_color": "red", "beard": "beard", "glasses": "none"},
    ]
    assert exact_agreement(wanted, wanted) == 1
    assert exact_agreement(wanted, [wanted[0] | {"hair_color": "red"}, wanted[1]]) == 1
    assert exact_agreement(wanted, [wanted[0], wanted[1] | {"glasses": "glasses"}]) == 0.5
    assert exact_agreement(wanted, [{}, {}]) == 0
    assert exact_agreement(wanted, [wanted[0], {"hat": "none"}], ("hat",)) == 1


def test_an_unseen_pair_counts_where_both_of_its_values_are_found() -> None:
    wanted = [
        {"hair_color": "red", "glasses": "sunglasses", "beard": "none", "hat": "none"},
        {"hair_color": HIDDEN, "glasses": "glasses", "beard": "moustache", "hat": "turban"},
        {"hair_color": "red", "glasses": "none", "beard": "none", "hat": "none"},
    ]
    assert pair_agreement(wanted, wanted) == 1
    assert pair_agreement(wanted, [wanted[0], wanted[1] | {"glasses": "none"}, wanted[2]]) == 0.5
    assert pair_agreement(wanted, [wanted[0], wanted[1] | {"beard": "none"}, wanted[2]]) == 1
    assert pair_agreement(wanted[2:], wanted[2:]) is None
