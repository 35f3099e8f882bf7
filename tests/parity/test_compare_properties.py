"""Properties of the comparator over drawn arrays: whatever comes in, it finds a defect or measures
with finite figures, and never lets a difference through.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, Tensor
from mmprod.parity.compare import FIGURES, Place, Stats, compare, find_defect

BATCH = Dim("batch", 1, 4, 16)
TENSORS = {
    "pixels": Tensor("pixels", "uint8", (BATCH, 2, 2, 3), "pixels", below=256),
    "codes": Tensor("codes", "int32", (BATCH, 5), "codes", below=9),
    "tokens": Tensor("tokens", "int32", (BATCH, 5), "tokens", below=9),
    "logits": Tensor("logits", "float32", (BATCH, 3, 7), "logits"),
    "embedding": Tensor("embedding", "float32", (BATCH, 6), "embedding"),
}
ROLES = st.sampled_from(sorted(TENSORS))
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""the same examples on every machine, and no folder of examples left behind"""


def defect(tensor: Tensor, reference: Any, candidate: Any, batch: int) -> str:
    return find_defect(tensor, {"batch": batch}, reference, candidate)


def clean(tensor: Tensor, batch: int) -> st.SearchStrategy[Array]:
    """Arrays without a defect."""
    shape = tensor.sizes({"batch": batch})
    if tensor.dtype != "float32":
        elements = st.integers(0, tensor.below - 1)
        return hnp.arrays(np.dtype(tensor.dtype), shape, elements=elements)
    floats = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
    found = hnp.arrays(np.float32, shape, elements=floats)
    if tensor.role == "embedding":
        return found.filter(lambda array: bool(array.any(axis=-1).all()))
    return found


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Array, Array]:
    tensor = TENSORS[draw(ROLES)]
    batch = draw(st.integers(1, 3))
    reference = draw(clean(tensor, batch))
    candidate = draw(st.one_of(st.just(reference.copy()), clean(tensor, batch)))
    return tensor, reference, candidate


@quick
@given(pairs())
def test_clean_arrays_are_measured_with_finite_figures(case: tuple[Tensor, Array, Array]) -> None:
    tensor, reference, candidate = case
    assert not defect(tensor, reference, candidate, len(reference))
    figures = compare(tensor, reference, candidate, "case").figures()
    assert set(figures) <= set(FIGURES)
    assert all(math.isfinite(value) for value in figures.values())


@quick
@given(pairs())
def test_a_difference_has_a_place_and_equality_has_none(case: tuple[Tensor, Array, Array]) -> None:
    tensor, reference, candidate = case
    stats = compare(tensor, reference, candidate, "case")
    equal = bool((reference == candidate).all())
    assert (stats.worst is None) is equal
    assert (stats.severity == 0) is equal
    if stats.worst is not None:
        index = stats.worst.index
        assert reference[index] != candidate[index]
        assert stats.worst.reference == float(reference[index])
        assert stats.worst.candidate == float(candidate[index])


@quick
@given(ROLES, st.integers(1, 3), st.data())
def test_an_array_equals_itself_whatever_it_holds(
    role: str, batch: int, data: st.DataObject
) -> None:
    tensor = TENSORS[role]
    array = data.draw(clean(tensor, batch))
    figures = compare(tensor, array, array.copy(), "case").figures()
    perfect = compare(tensor, np.ones_like(array), np.ones_like(array), "case").figures()
    assert figures == perfect


@quick
@given(
    st.sampled_from(["logits", "embedding"]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(1, 3),
    st.booleans(),
    st.data(),
)
def test_nan_and_inf_are_found_anywhere(
    role: str, bad: float, batch: int, on_reference: bool, data: st.DataObject
) -> None:
    tensor = TENSORS[role]
    array = data.draw(clean(tensor, batch))
    dirty = array.copy()
    place = data.draw(st.integers(0, array.size - 1))
    dirty.flat[place] = bad
    sides = (dirty, array) if on_reference else (array, dirty)
    found = defect(tensor, *sides, batch)
    at = tuple(int(i) for i in np.unravel_index(place, array.shape))
    assert found.startswith("reference" if on_reference else "candidate")
    assert ("NaN" if math.isnan(bad) else "Inf") in found and str(at) in found


@quick
@given(
    ROLES,
    hnp.arrays(
        st.sampled_from(
            [np.float32, np.float16, np.float64, np.int32, np.int64, np.uint8, np.bool_]
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.integers(0, 3),
)
def test_any_other_dtype_or_shape_is_a_defect(role: str, odd: Array, batch: int) -> None:
    tensor = TENSORS[role]
    shape = tensor.sizes({"batch": batch})
    right = np.ones(shape, tensor.dtype)
    fits = odd.dtype == right.dtype and odd.shape == shape and odd.size > 0
    found = defect(tensor, right, odd, batch)
    if not fits:
        assert found
        assert defect(tensor, odd, right, batch)
        assert defect(tensor, odd, odd, batch), "alike on both sides is no excuse"


@quick
@given(st.sampled_from(["codes", "tokens", "pixels"]), st.integers(-(2**31), 2**31 - 1))
def test_ids_are_clean_exactly_within_their_range(role: str, value: int) -> None:
    tensor = TENSORS[role]
    array = np.zeros(tensor.sizes({"batch": 2}), np.int32)
    array.flat[-1] = value
    found = defect(tensor, array, array, 2)
    if role == "pixels":
        assert "expected uint8" in found
    else:
        assert bool(found) is not (0 <= value < tensor.below)


@quick
@given(st.one_of(st.none(), st.integers(), st.booleans(), st.lists(st.floats()), st.text()))
def test_what_is_no_array_is_a_defect(value: object) -> None:
    assert "not an array" in defect(TENSORS["codes"], np.zeros((1, 5), np.int32), value, 1)


@quick
@given(pairs())
def test_an_all_zero_reference_is_compared_or_refused(case: tuple[Tensor, Array, Array]) -> None:
    tensor, _, candidate = case
    zero = np.zeros_like(candidate)
    found = defect(tensor, zero, candidate, len(zero))
    if tensor.role == "embedding":
        assert "vector of zeros" in found
        return
    assert not found
    stats = compare(tensor, zero, candidate, "case")
    assert all(math.isfinite(value) for value in stats.figures().values())
    assert (stats.worst is None) is not candidate.any()


counts = st.integers(0, 2**20).map(float)
"""whole numbers, as nearly all sums are: floating-point addition of others is not associative"""


@st.composite
def stats(draw: st.DrawFn) -> Stats:
    place = st.none() | st.builds(Place, st.sampled_from("abc"), st.just((0,)), counts, counts)
    keys = ("count", "differing", "samples")
    return Stats(
        "codes",
        {key: draw(counts) for key in keys},
        {"abs": draw(counts)},
        draw(place),
        draw(place),
        draw(st.integers(0, 3).map(float)),
    )


@quick
@given(stats(), stats(), stats())
def test_merging_is_associative(a: Stats, b: Stats, c: Stats) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@quick
@given(st.sampled_from(["codes", "tokens", "pixels"]), st.integers(2, 4), st.data())
def test_samples_measured_together_or_apart_give_the_same(
    role: str, batch: int, data: st.DataObject
) -> None:
    tensor = TENSORS[role]
    reference, candidate = data.draw(clean(tensor, batch)), data.draw(clean(tensor, batch))
    cut = data.draw(st.integers(1, batch - 1))
    whole = compare(tensor, reference, candidate, "case")
    first = compare(tensor, reference[:cut], candidate[:cut], "case")
    rest = compare(tensor, reference[cut:], candidate[cut:], "case")
    merged = first.merge(rest)
    assert merged.figures() == whole.figures()
    assert dict(merged.sums) == dict(whole.sums) and dict(merged.peaks) == dict(whole.peaks)
