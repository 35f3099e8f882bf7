"""The comparator itself: what it must never let through, and that its figures are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Dim, Role, Tensor
from mmprod.parity import compare as module
from mmprod.parity.compare import PSNR_CAP, Stats, compare, divergence, find_defect

BATCH = Dim("batch", 1, 4, 16)
TENSORS = {
    "pixels": Tensor("pixels", "uint8", (BATCH, 2, 2, 3), "pixels", below=256),
    "codes": Tensor("codes", "int32", (BATCH, 5), "codes", below=9),
    "tokens": Tensor("tokens", "int32", (BATCH, 5), "tokens", below=9),
    "logits": Tensor("logits", "float32", (BATCH, 3, 7), "logits"),
    "embedding": Tensor("embedding", "float32", (BATCH, 6), "embedding"),
}
FLOATS = ("logits", "embedding")
ROLES = tuple(TENSORS)


def draw(role: str, batch: int = 4, seed: int = 0) -> Array:
    tensor = TENSORS[role]
    shape = tensor.sizes({"batch": batch})
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    if tensor.dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, tensor.below, shape).astype(tensor.dtype)


def defect(role: str, reference: Any, candidate: Any, batch: int = 4) -> str:
    return find_defect(TENSORS[role], {"batch": batch}, reference, candidate)


def measure(role: str, reference: Array, candidate: Array) -> Stats:
    assert not defect(role, reference, candidate, len(reference))
    return compare(TENSORS[role], reference, candidate, "case")


@pytest.mark.parametrize("role", ROLES)
def test_equal_arrays_are_perfect(role: str) -> None:
    array = draw(role)
    stats = measure(role, array, array.copy())
    perfect = {"psnr": PSNR_CAP, "agreement": 1.0, "top1": 1.0, "cosine": 1.0}
    assert stats.figures() == {name: perfect.get(name, 0.0) for name in stats.figures()}
    assert stats.first is None and stats.worst is None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_changed_element_shows_in_the_figures_and_is_named(role: str, place: int) -> None:
    reference = draw(role)
    candidate = reference.copy()
    candidate.flat[place] = (candidate.flat[place] + 1) % 9
    stats = measure(role, reference, candidate)
    assert stats.figures() != measure(role, reference, reference).figures()
    assert stats.worst is not None
    assert stats.worst.index == np.unravel_index(place % reference.size, reference.shape)
    assert stats.worst.reference == reference.flat[place]
    assert stats.worst.candidate == candidate.flat[place]
    assert "case" in str(stats.worst)


@pytest.mark.parametrize("role", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", ["reference", "candidate", "both"])
def test_nan_and_inf_always_fail_even_on_both_sides(role: str, bad: float, sides: str) -> None:
    clean, dirty = draw(role), draw(role)
    dirty.flat[9] = bad
    reference = clean if sides == "candidate" else dirty
    candidate = clean if sides == "reference" else dirty
    found = defect(role, reference, candidate)
    assert found.startswith("candidate" if sides == "candidate" else "reference")
    assert ("NaN" if math.isnan(bad) else "Inf") in found
    assert "1 of" in found


@pytest.mark.parametrize("role", ROLES)
def test_empty_outputs_fail(role: str) -> None:
    empty = draw(role, batch=0)
    assert "empty" in defect(role, empty, empty, batch=0)
    assert "shape" in defect(role, draw(role), empty)


@pytest.mark.parametrize("role", ROLES)
def test_wrong_types_fail(role: str) -> None:
    array = draw(role)
    for wrong in (array.astype(np.float16), array.astype(np.int64), array.astype(bool)):
        assert f"candidate: {role} is {wrong.dtype}" in defect(role, array, wrong)
        assert f"reference: {role} is {wrong.dtype}" in defect(role, wrong, array)
    assert "not an array" in defect(role, array, array.tolist())
    assert "not an array" in defect(role, array, None)


@pytest.mark.parametrize("role", ROLES)
def test_wrong_shapes_fail_though_they_would_broadcast(role: str) -> None:
    array = draw(role)
    for wrong in (array[:1], array[..., :1], array[None], array.reshape(-1), array[0]):
        assert "shape" in defect(role, array, wrong)
        assert "shape" in defect(role, wrong, array)
    assert "shape" in defect(role, array, array, batch=3), "both alike, but not what was asked for"


@pytest.mark.parametrize("role", ["codes", "tokens"])
@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_ids_out_of_range_fail(role: str, bad: int) -> None:
    array, wrong = draw(role), draw(role)
    wrong[2, 2] = bad
    assert "outside 0..8" in defect(role, array, wrong)
    assert "outside 0..8" in defect(role, wrong, wrong.copy())


def test_all_zero_reference() -> None:
    for role in ("pixels", "codes", "tokens", "logits"):
        zero, other = np.zeros_like(draw(role)), draw(role)
        assert not defect(role, zero, zero.copy())
        same, changed = measure(role, zero, zero.copy()).figures(), measure(role, zero, other)
        assert same != changed.figures()
    zero = np.zeros_like(draw("embedding"))
    for pair in ((zero, draw("embedding")), (draw("embedding"), zero), (zero, zero.copy())):
        assert "zeros" in defect("embedding", *pair), "a vector without direction has no cosine"


def test_pixel_figures() -> None:
    reference = np.full((2, 2, 2, 3), 100, np.uint8)
    candidate = reference.copy()
    candidate[0, 0, 0, 0], candidate[1, 1, 1, 2] = 103, 96
    stats = measure("pixels", reference, candidate)
    figures = stats.figures()
    assert figures["max_level"] == 4
    assert figures["differing"] == pytest.approx(2 / 24)
    assert figures["psnr"] == pytest.approx(10 * math.log10(255**2 / (25 / 24)))
    assert stats.first is not None and stats.first.index == (0, 0, 0, 0)
    assert stats.worst is not None and stats.worst.index == (1, 1, 1, 2)


def test_pixel_differences_do_not_wrap_around() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    for pair in ((black, white), (white, black)):
        figures = measure("pixels", *pair).figures()
        assert figures == {"max_level": 255, "differing": 1, "psnr": 0}


def test_id_figures_name_the_first_place_and_the_worst_sample() -> None:
    reference = np.zeros((4, 5), np.int32)
    candidate = reference.copy()
    candidate[1, 3] = 2
    candidate[2, 1:] = 5
    stats = measure("codes", reference, candidate)
    assert stats.figures() == {"agreement": 1 - 5 / 20, "differing_samples": 2}
    assert stats.first is not None and stats.first.index == (1, 3)
    assert stats.worst is not None and stats.worst.index == (2, 1)


def test_logit_figures() -> None:
    reference = np.zeros((1, 3, 7), np.float32)
    reference[..., 0] = 1.0
    reference[..., 1] = 0.75
    candidate = reference.copy()
    candidate[0, 1, 1] = 1.5
    stats = measure("logits", reference, candidate)
    p = np.exp(reference[0, 1].astype(np.float64))
    q = np.exp(candidate[0, 1].astype(np.float64))
    p, q = p / p.sum(), q / q.sum()
    kl = float((p * np.log(p / q)).sum())
    figures = stats.figures()
    assert figures["max_abs"] == 0.75
    assert figures["top1"] == pytest.approx(2 / 3)
    assert figures["top1_regret"] == 0.25
    assert figures["kl_max"] == pytest.approx(kl)
    assert figures["kl_mean"] == pytest.approx(kl / 3)
    assert stats.worst is not None and stats.worst.index == (0, 1, 1)


def test_a_tie_costs_no_regret() -> None:
    reference = np.zeros((1, 3, 7), np.float32)
    candidate = reference.copy()
    candidate[..., 4] = 1e-7
    figures = measure("logits", reference, candidate).figures()
    assert figures["top1"] == 0 and figures["top1_regret"] == 0


def test_divergence_of_extreme_logits_is_finite_and_never_negative() -> None:
    extreme = np.array([[3e38, -3e38, 0.0], [0.0, 3e38, -3e38], [1e-30, 0, 0]])
    for got in (extreme, extreme[::-1], np.zeros_like(extreme)):
        kl = divergence(extreme, got)
        assert np.isfinite(kl).all() and (kl >= 0).all()


def test_embedding_figures() -> None:
    reference = np.eye(2, 6, dtype=np.float32)
    angle = 0.25
    candidate = reference.copy()
    candidate[1, :2] = math.sin(angle), math.cos(angle)
    stats = measure("embedding", reference, candidate)
    figures = stats.figures()
    assert figures["cosine"] == pytest.approx(math.cos(angle), abs=1e-7)
    assert figures["max_abs"] == pytest.approx(math.sin(angle))
    opposite = measure("embedding", reference, -reference).figures()
    assert opposite["cosine"] == pytest.approx(-1)


def test_small_turns_are_not_rounded_away() -> None:
    reference = np.eye(1, 6, dtype=np.float32)
    candidate = reference.copy()
    candidate[0, 1] = 1e-6
    turn = measure("embedding", reference, candidate).peaks["turn"]
    assert turn == pytest.approx(0.5e-12, rel=1e-3)


@pytest.mark.parametrize("role", ROLES)
def test_merging_cases_equals_comparing_all_at_once(role: str) -> None:
    reference, candidate = draw(role, 12), draw(role, 12, seed=1)
    candidate[:6] = reference[:6]
    candidate[4].flat[1] = 3
    whole = measure(role, reference, candidate)
    parts = [
        compare(TENSORS[role], reference[a:b], candidate[a:b], f"part {a}")
        for a, b in ((0, 2), (2, 3), (3, 8), (8, 12))
    ]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3])))
    assert left == right
    assert left.figures() == pytest.approx(whole.figures())
    assert left.worst is not None and whole.worst is not None
    assert (left.worst.reference, left.worst.candidate) == (
        whole.worst.reference,
        whole.worst.candidate,
    )


def test_merging_different_roles_is_refused() -> None:
    codes, tokens = (measure(role, draw(role), draw(role)) for role in ("codes", "tokens"))
    with pytest.raises(ValueError, match="merge tokens into codes"):
        codes.merge(tokens)


def test_logits_in_chunks_equal_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = draw("logits", 9), draw("logits", 9, seed=1)
    whole = measure("logits", reference, candidate)
    monkeypatch.setattr(module, "CHUNK", 14)
    chunked = measure("logits", reference, candidate)
    assert chunked.figures() == pytest.approx(whole.figures())
    assert chunked.worst == whole.worst


@pytest.mark.parametrize("role", ["noise", "mask"])
def test_roles_that_are_no_output_are_refused(role: Role) -> None:
    tensor = Tensor("x", "float32", (BATCH, 2), role)
    array = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=role):
        compare(tensor, array, array, "case")
