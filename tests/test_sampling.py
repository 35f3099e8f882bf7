"""Host side of the samplers: noise and batching, over a fake runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import BATCH, build_catalog
from mmprod.sampling import (
    Drawn,
    best_of,
    caption_images,
    draw_joint,
    draw_unconditional,
    edit_images,
    generate_images,
    hidden_likelihood,
    likelihood,
    places_outside,
    places_that_agree,
    run_batched,
    similarity,
)

DIMS = Dims(8, 2, 20, 6, 15, 16)
CATALOG = build_catalog(DIMS, SamplerConfig(image_steps=2, text_steps=2))


class FakeRunner:
    """Answers with something that depends on every input, sample by sample."""

    backend = "fake"

    def __init__(self, name: str) -> None:
        self.spec = CATALOG[name]
        self.batches: list[int] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert set(inputs) == {t.name for t in self.spec.inputs}
        count = len(next(iter(inputs.values())))
        self.batches.append(count)
        sums = sum(v.reshape(count, -1).astype(np.float64).sum(1) for v in inputs.values())
        out = {}
        for tensor in self.spec.outputs:
            value = np.zeros(tensor.sizes({"batch": count}), tensor.dtype)
            value += (
                (np.asarray(sums) * 1000 % 13)
                .astype(tensor.dtype)
                .reshape(-1, *[1] * (value.ndim - 1))
            )
            out[tensor.name] = value
        return out

    def close(self) -> None:
        """Nothing to free."""


class Letters:
    """One token a letter."""

    def encode(self, texts: list[str], length: int) -> Any:
        rows = [[ord(c) % 15 for c in text.ljust(length)[:length]] for text in texts]
        return np.array(rows, np.int32)

    def decode(self, ids: Any) -> list[str]:
        return ["".join(chr(65 + i) for i in row) for row in ids]


def test_pictures_do_not_depend_on_batching() -> None:
    captions = [f"face {i}" for i in range(2 * BATCH.max + 3)]
    runner = FakeRunner("text_to_image")
    whole = generate_images(runner, Letters(), captions, seed=5)
    assert whole.shape == (len(captions), 8, 8, 3)
    assert runner.batches == [BATCH.max, BATCH.max, 3]
    few = generate_images(FakeRunner("text_to_image"), Letters(), captions[:4], seed=5)
    assert np.array_equal(whole[:4], few)


def test_seed_changes_the_noise() -> None:
    first, other = (
        generate_images(FakeRunner("text_to_image"), Letters(), ["a"] * 8, seed=seed)
        for seed in (0, 1)
    )
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("count", [1, BATCH.max + 1])
def test_every_picture_gets_a_caption(count: int) -> None:
    images = np.zeros((count, 8, 8, 3), np.uint8)
    texts = caption_images(FakeRunner("image_to_text"), Letters(), images)
    assert len(texts) == count and all(len(text) == 6 for text in texts)


def test_run_batched_concatenates() -> None:
    codes = np.arange(4 * (BATCH.max + 2), dtype=np.int32).reshape(-1, 4) % 20
    assert run_batched(FakeRunner("embed_image"), "codes", codes)["embedding"].shape == (
        BATCH.max + 2,
        16,
    )


def test_joint_and_unconditional_do_not_depend_on_batching() -> None:
    count = BATCH.max + 2
    joint = draw_joint(FakeRunner("joint"), count, seed=3)
    few = draw_joint(FakeRunner("joint"), 5, seed=3)
    assert joint.pixels.shape == (count, 8, 8, 3) and joint.tokens.shape == (count, 6)
    assert np.array_equal(joint.tokens[:5], few.tokens)
    runner = FakeRunner("edit")
    alone = draw_unconditional(runner, DIMS, count, seed=3)
    assert (alone.tokens == DIMS.vocabulary).all() and runner.batches == [BATCH.max, 2]


def test_an_edit_hands_every_sample_its_own_mask() -> None:
    originals = np.zeros((3, 8, 8, 3), np.uint8)
    tokens = np.zeros((3, 6), np.int32)
    keep = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.int32)
    other = keep[[0, 2, 1]]
    first, second = (
        edit_images(FakeRunner("edit"), originals, values, tokens, seed=1)
        for values in (keep, other)
    )
    assert np.array_equal(first.codes[0], second.codes[0])
    assert not np.array_equal(first.codes[1:], second.codes[1:])


def test_any_white_pixel_of_a_cell_draws_it_anew_in_every_plane() -> None:
    redraw = np.zeros((8, 8), bool)
    redraw[3, 4] = True
    assert places_outside(redraw, DIMS).tolist() == [1, 0, 1, 1]
    planes = Dims(8, 2, 40, 6, 15, 16, planes=2)
    assert places_outside(redraw, planes).tolist() == [1, 0, 1, 1] * 2


class TextWants:
    """A fusion_step for which the first token says how strongly each place's own code is wanted;
    `alone`: where nothing of the picture is shown. `seen` keeps the masks it was given.
    """

    backend = "fake"

    def __init__(
        self, codes: Any, wants: Mapping[int, Any], alone: Mapping[int, Any] | None = None
    ) -> None:
        self.spec = CATALOG["fusion_step"]
        self.codes, self.wants, self.alone = codes, wants, alone or wants
        self.seen: list[Any] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append(inputs["codes"] == DIMS.codebook_size)
        logits = np.zeros((len(inputs["codes"]), 4, 20), np.float32)
        for sample, row in enumerate(inputs["tokens"]):
            wants = self.alone if self.seen[-1][sample].all() else self.wants
            for place, strength in enumerate(wants[int(row[0])]):
                logits[sample, place, self.codes[sample, place]] = strength
        return {"image_logits": logits}

    def close(self) -> None:
        """Nothing to free."""


def _words(first: int) -> Any:
    return np.full((1, 6), first, np.int32)


def test_words_draw_anew_what_they_make_unlikely() -> None:
    """The new caption takes 5 from place 2, 1 from place 1, and favours place 0."""
    codes = np.array([[3, 7, 9, 11]], np.int32)
    runner = TextWants(codes, {1: [0, 4, 6, 2], 2: [8, 3, 1, 2]})
    captions = (_words(1), _words(2))
    assert places_that_agree(runner, DIMS, codes, captions, 0.25).tolist() == [[1, 1, 0, 1]]
    assert places_that_agree(runner, DIMS, codes, captions, 0.5).tolist() == [[1, 0, 0, 1]]
    assert places_that_agree(runner, DIMS, codes, captions, 0.01).tolist() == [[1, 1, 0, 1]]
    assert places_that_agree(runner, DIMS, codes, captions, 1.0).tolist() == [[0, 0, 0, 0]]


def test_a_place_is_drawn_anew_for_what_it_loses_in_either_view() -> None:
    """Place 3 gives itself away by its neighbours, place 0 is not where the text alone says."""
    codes = np.array([[3, 7, 9, 11]], np.int32)
    near, alone = {1: [5, 4, 4, 9], 2: [1, 4, 4, 9]}, {1: [1, 4, 4, 5], 2: [1, 4, 4, 1]}
    runner = TextWants(codes, near, alone)
    keep = places_that_agree(runner, DIMS, codes, (_words(1), _words(2)), 0.5)
    assert keep.tolist() == [[0, 1, 1, 0]]


def test_likelihoods_are_those_of_the_logits() -> None:
    codes = np.array([[3, 7, 9, 11]], np.int32)
    runner = TextWants(codes, {1: [0, 1, 2, 3]})
    wanted = np.array([s - np.log(np.exp(s) + 19) for s in (0, 1, 2, 3)])
    found = hidden_likelihood(runner, DIMS, codes, _words(1))
    np.testing.assert_allclose(found, [[wanted], [wanted]])
    assert np.sum(runner.seen, axis=0).tolist() == [[4, 4, 4, 4]]
    runner.seen.clear()
    np.testing.assert_allclose(likelihood(runner, DIMS, codes, _words(1)), [wanted.sum()])
    assert [int(hidden.sum()) for hidden in runner.seen] == [4, 3, 2, 1]


def test_best_of_takes_the_first_best_of_each_row() -> None:
    ids = np.arange(6, dtype=np.int32)[:, None]
    drawn = Drawn(np.zeros((6, 1, 1, 3), np.uint8), ids, ids)
    chosen = best_of(drawn, np.array([0.0, 2, 2, 5, 4, 3]), 3)
    assert chosen.codes[:, 0].tolist() == [1, 3]


def test_similarity_is_a_cosine_of_each_pair() -> None:
    codes, tokens = np.zeros((20, 4), np.int32), np.zeros((20, 6), np.int32)
    codes[:, 0], tokens[:, 0] = np.arange(20), 3
    found = similarity(FakeRunner("embed_image"), FakeRunner("embed_text"), codes, tokens)
    images = run_batched(FakeRunner("embed_image"), "codes", codes)["embedding"]
    texts = run_batched(FakeRunner("embed_text"), "tokens", tokens)["embedding"]
    np.testing.assert_allclose(found, [a @ b for a, b in zip(images, texts, strict=True)])
