"""tools/half_islands.py: the share is that of draws, and the search takes what helps most."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tools.half_islands import alike, blocks, search


def test_the_share_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.cumsum(rng.dirichlet(np.ones(5), (1, 1)), -1) for _ in range(2))
    noise = rng.random(100_000)
    drawn = [np.searchsorted(sums[0, 0], noise) for sums in (a, b)]
    assert alike([a], [b]) == pytest.approx((drawn[0] == drawn[1]).mean(), abs=5e-3)
    assert alike([a], [a]) == pytest.approx(1)


GAINS = {"head": 0.03, "block.0": 0.02, "idle": 0.0}


def share(islands: list[str]) -> float:
    return 0.95 + sum(GAINS[name] for name in islands)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [(0.9, []), (0.97, ["head"]), (0.99, ["head", "block.0"]), (1.1, ["head", "block.0"])],
)
def test_the_best_joins_until_it_suffices_or_nothing_helps(
    wanted: float, chosen: list[str]
) -> None:
    trail = search(share, GAINS, wanted)
    assert [name for name, _ in trail] == ["", *chosen]
    assert trail[-1][1] == pytest.approx(share(chosen))


def test_blocks_of_a_list_are_taken_whole() -> None:
    names = ("MatMul_1", "text.decoder.0.mlp.up/MatMul_2", "text.decoder.0/MatMul_3", "head/Gemm_4")
    nodes = [helper.make_node(n.rpartition("/")[2][:-2], ["x"], ["y"], n) for n in names]
    nodes.append(helper.make_node("Add", ["x"], ["y"], "norm/Add_5"))
    model: onnx.ModelProto = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert blocks(model) == ["text.decoder.0", "head"]
