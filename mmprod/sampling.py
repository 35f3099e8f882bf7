"""Using the samplers from the host: captions in, pictures out, and back, over any Runner.

The graphs hold the whole sampler; what is left here is tokenizing, noise and batching. Noise is a
pure function of (seed, index of the sample), so a picture does not depend on the batch it was made
in, nor on the backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmprod.graphs.runner import Array, Runner

Pixels = npt.NDArray[np.uint8]


class Tokens(Protocol):
    """What sampling needs of a tokenizer."""

    def encode(self, texts: list[str], length: int) -> npt.NDArray[np.int32]: ...

    def decode(self, ids: npt.NDArray[np.int32]) -> list[str]: ...


def noise(runner: Runner, seed: int, indices: Sequence[int]) -> npt.NDArray[np.float32]:
    """Uniform noise in [0, 1) for the given samples: (len(indices), T, S) float32."""
    shape = runner.spec.input("noise").shape[1:]
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, index])).random(shape, dtype=np.float32)  # type: ignore[arg-type]
        for index in indices
    ]
    return np.stack(rows)


def generate_images(
    runner: Runner, tokenizer: Tokens, captions: Sequence[str], seed: int = 0
) -> Pixels:
    """captions -> pictures (B, H, W, 3) uint8 by the graph `text_to_image`. Sample i uses noise
    (seed, i).
    """
    length = int(runner.spec.input("tokens").sizes_at("min")[1])
    tokens = tokenizer.encode(list(captions), length)
    batches = [
        runner(
            {"tokens": tokens[rows], "noise": noise(runner, seed, range(rows.start, rows.stop))}
        )["pixels"]
        for rows in _batches(runner, len(tokens))
    ]
    return np.concatenate(batches)


def caption_images(runner: Runner, tokenizer: Tokens, images: Pixels, seed: int = 0) -> list[str]:
    """pictures (B, H, W, 3) uint8 -> captions by the graph `image_to_text`. Sample i uses noise
    (seed, i).
    """
    texts: list[str] = []
    for rows in _batches(runner, len(images)):
        inputs: dict[str, Array] = {
            "pixels": images[rows],
            "noise": noise(runner, seed, range(rows.start, rows.stop)),
        }
        texts += tokenizer.decode(runner(inputs)["tokens"])
    return texts


def run_batched(runner: Runner, name: str, values: Array) -> dict[str, Array]:
    """Run a graph of one input over many samples, in batches it allows; outputs concatenated."""
    parts = [runner({name: values[rows]}) for rows in _batches(runner, len(values))]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _batches(runner: Runner, count: int) -> Iterator[slice]:
    """Slices of at most the largest batch of the graph."""
    largest = runner.spec.dims[0].max
    return (slice(start, min(start + largest, count)) for start in range(0, count, largest))
