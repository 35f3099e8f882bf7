"""Which captions a mirrored picture would make false."""

from __future__ import annotations

import pytest

from mmprod.data.texts import speaks_of_sides


@pytest.mark.parametrize(
    "caption",
    [
        "a cat LEFT of a dog",
        "a right-handed man",
        "turns anti-clockwise",
        "猫在狗的左边",
        "顺时针",
        "猫在left边",
    ],
)
def test_sides_are_heard(caption: str) -> None:
    assert speaks_of_sides(caption)


@pytest.mark.parametrize("caption", ["a bright upright lamp", "a cleft stone", "戴眼镜的人", ""])
def test_other_words_are_not_sides(caption: str) -> None:
    assert not speaks_of_sides(caption)
