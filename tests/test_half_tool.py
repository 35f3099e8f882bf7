"""tools/half.py: equal graphs agree in everything, a rounded one is told by each figure."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest

from mmprod.config.schema import Dims, SamplerConfig
from tools import half

DIMS = Dims(image_size=8, grid=4, codebook_size=24, text_length=5, vocabulary=20, embedding=4)
SAMPLER = SamplerConfig(image_steps=4, text_steps=3)


def step(inputs: dict[str, Any], error: float = 0.0) -> dict[str, Any]:
    """Logits that depend on every input."""
    codes, tokens = inputs["codes"], inputs["tokens"]
    seed = codes.sum(1) + 31 * tokens.sum(1)
    found = {}
    for name, shape in (("image_logits", (16, 24)), ("text_logits", (5, 20))):
        rows = [np.random.default_rng(int(s)).normal(size=shape) for s in seed]
        wave = error * np.sin(np.arange(np.prod(shape)).reshape(shape) * 7)
        found[name] = (4 * np.stack(rows) + wave).astype(np.float32)
    return found


def decode(inputs: dict[str, Any], error: int = 0) -> dict[str, Any]:
    pixels = np.repeat(inputs["codes"][:, :12].reshape(-1, 2, 2, 3) * 10, 4, axis=1)
    return {"pixels": np.repeat(pixels, 4, axis=2) + error}


def figures(error: float, level: int, seeds: int = 7) -> dict[str, Any]:
    given = argparse.Namespace(seeds=seeds, batch=3)
    pairs = (
        half.Pair(step, lambda inputs: step(inputs, error)),
        half.Pair(decode, lambda inputs: decode(inputs, level)),
    )
    found: dict[str, Any] = half.measure(*pairs, DIMS, SAMPLER, given)
    return found


def test_equal_graphs_agree() -> None:
    found = figures(0.0, 0)
    assert found["cosine_of_a_sample"] == pytest.approx(1, abs=1e-12)
    assert set(found["draws"].values()) == {1.0}
    assert found["psnr_smallest"] > 100
    assert found["draws_counted"] == 7 * (16 + 5)  # each place once, in each of both ways


def test_each_figure_tells_an_error() -> None:
    found = figures(0.3, 2)
    assert 0.9 < found["cosine_of_a_place"] < found["cosine_of_a_sample"] < 1
    assert found["psnr_smallest"] == pytest.approx(20 * np.log10(255 / 2), abs=1e-6)
    draws = found["draws"]
    assert 0.5 < draws["codes"] < 1
    assert draws["free codes"] < draws["codes"]  # one moved draw moves those after it
