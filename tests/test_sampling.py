"""Host side of the samplers: noise and batching, over a fake runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import BATCH, build_catalog
from mmprod.sampling import caption_images, generate_images, run_batched

CATALOG = build_catalog(Dims(8, 2, 20, 6, 15, 16), SamplerConfig(image_steps=2, text_steps=2))


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
