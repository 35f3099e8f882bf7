"""Recall of a search."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.errors import NumericsError
from mmprod.evaluation.retrieval import chance_recall, recalls

EYE = np.eye(12, dtype=np.float32)


def test_the_right_item_first_is_a_recall_of_one() -> None:
    assert recalls(EYE, EYE, np.eye(12, dtype=bool)) == {"R@1": 1, "R@5": 1, "R@10": 1}


def test_ranks_decide_at_which_depth_an_item_is_found() -> None:
    angles = np.linspace(0, 1, 12)
    items = np.stack([np.cos(angles), np.sin(angles)], 1)
    right = np.zeros((3, 12), bool)
    right[[0, 1, 2], [0, 4, 11]] = True  # the query is nearest to item 0, then 1, 2, ...
    found = recalls(np.repeat(items[:1], 3, 0), items, right)
    assert found == {
        "R@1": pytest.approx(1 / 3), "R@5": pytest.approx(2 / 3), "R@10": pytest.approx(2 / 3)
    }  # fmt: skip


def test_a_constant_embedding_finds_nothing() -> None:
    same = np.ones((12, 4)) / 2
    assert recalls(same, same, np.eye(12, dtype=bool), (1, 11, 12)) == {
        "R@1": 0, "R@11": 0, "R@12": 1
    }  # fmt: skip


def test_any_of_several_right_items_counts() -> None:
    right = np.eye(12, dtype=bool)
    right[0, 5] = True
    swapped = EYE.copy()
    swapped[[0, 5]] = swapped[[5, 0]]
    assert recalls(EYE, swapped, right, (1,))["R@1"] == pytest.approx(11 / 12)


def test_chance_is_that_of_a_draw_without_replacement() -> None:
    right = np.eye(10, dtype=bool)
    assert chance_recall(right) == pytest.approx(0.1)
    assert chance_recall(right, 5) == pytest.approx(0.5)
    assert chance_recall(right, 20) == pytest.approx(1)
    right[0, 1] = True
    assert chance_recall(right) == pytest.approx(0.11)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    broken = EYE.copy()
    broken[3, 0] = np.nan
    for queries, items in ((broken, EYE), (EYE, broken)):
        with pytest.raises(NumericsError, match="embedding is NaN"):
            recalls(queries, items, np.eye(12, dtype=bool))
