"""Inputs that a graph must refuse, whatever executes it."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.errors import ConfigError, IntegrityError
from mmprod.graphs.runner import Array, example_inputs
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.runners.checks import check_inputs, check_outputs

BATCH = Dim("batch", 1, 2, 4)
SPEC = GraphSpec(
    "g",
    (
        Tensor("tokens", "int32", (BATCH, 3), "tokens", below=10),
        Tensor("noise", "float32", (BATCH, 2), "noise"),
    ),
    (Tensor("pixels", "uint8", (BATCH, 5), "pixels"),),
    "",
)


def good(batch: int = 2) -> dict[str, Array]:
    return example_inputs(SPEC, batch, seed=0)


def test_good_inputs_give_the_sizes() -> None:
    assert check_inputs(SPEC, good(3)) == {"batch": 3}
    assert check_inputs(SPEC, good(9)) == {"batch": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "takes the inputs"),
        ({"extra": np.zeros(1)}, "takes the inputs"),
        ({"tokens": np.zeros((2, 3), np.int64)}, "int64, not int32"),
        ({"noise": np.zeros((2, 2), np.float64)}, "float64, not float32"),
        ({"noise": [[0.0, 0.0]] * 2}, "list, not float32"),
        ({"noise": np.zeros((2, 3), np.float32)}, "has the shape"),
        ({"noise": np.zeros((2, 2, 1), np.float32)}, "has the shape"),
        ({"noise": np.zeros((3, 2), np.float32)}, "has the shape"),
        ({"tokens": np.full((2, 3), 10, np.int32)}, "outside 0..9"),
        ({"tokens": np.full((2, 3), -1, np.int32)}, "outside 0..9"),
    ],
)
def test_bad_inputs_are_named(change: dict[str, object], message: str) -> None:
    inputs = {k: v for k, v in {**good(), **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        check_inputs(SPEC, inputs)  # type: ignore[arg-type]
    assert caught.value.hint


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch 0 is outside"):
        check_inputs(SPEC, good(0))


def test_the_largest_size_counts_where_asked() -> None:
    assert check_inputs(SPEC, good(4), up_to_max=True) == {"batch": 4}
    with pytest.raises(ConfigError, match=r"batch 5 is outside 1\.\.4"):
        check_inputs(SPEC, good(5), up_to_max=True)


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [np.zeros((2, 5), np.int32)],
        [np.zeros((2, 4), np.uint8)],
        [np.zeros((1, 5), np.uint8)],
        [np.zeros((2, 5), np.uint8)] * 2,
    ],
)
def test_outputs_that_differ_from_the_specification(outputs: list[Array]) -> None:
    with pytest.raises(IntegrityError, match="specification"):
        check_outputs(SPEC, outputs, {"batch": 2})


def test_good_outputs_are_named() -> None:
    value = np.zeros((2, 5), np.uint8)
    assert check_outputs(SPEC, [value], {"batch": 2})["pixels"] is value
