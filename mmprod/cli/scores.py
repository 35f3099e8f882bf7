"""How good a model is, measured through its runners: the same figures for PyTorch and for a bundle.

Reconstructions are measured in dB. Captions are read back into attributes and compared with those
of the picture. Generated faces are read by a judge: a classifier that was trained on real pictures
and has never seen a generated one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmprod.cli.source import Source
from mmprod.data.attributes import SCORED, parse_caption
from mmprod.evaluation.agreement import attribute_agreement
from mmprod.sampling import caption_images, generate_images, run_batched

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmprod.data.store import Split
    from mmprod.evaluation.judge import Judge

    Pixels = npt.NDArray[np.uint8]

JUDGE_STEPS = 300
JUDGE_PICTURES = 4000
"""Real pictures that the judge learns from, at most."""

Attributes = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Sample:
    """Held-out pictures (B, H, W, 3) uint8, a caption of each, and their attributes ({}: none)."""

    pictures: Pixels
    captions: list[str]
    attributes: Attributes

    @property
    def scorable(self) -> bool:
        """Whether words and generated pictures can be compared with known attributes."""
        return all(set(SCORED) & set(attributes) for attributes in self.attributes)


def sample(split: Split, count: int, languages: Sequence[str]) -> Sample:
    """The first `count` samples of a split, or all there are."""
    indices = np.arange(min(count, len(split)))
    captions = split.captions(indices, languages, 0)
    return Sample(split.images(indices), captions, split.attributes(indices))


def reconstruct(source: Source, pictures: Pixels) -> Pixels:
    """pictures -> codes -> pictures, by the graphs codec_encode and codec_decode."""
    values: npt.NDArray[np.generic] = pictures
    for graph, name, output in (
        ("codec_encode", "pixels", "codes"),
        ("codec_decode", "codes", "pixels"),
    ):
        runner = source.runner(graph)
        try:
            values = run_batched(runner, name, values)[output]
        finally:
            runner.close()
    return values.astype(np.uint8, copy=False)


def draw(source: Source, captions: Sequence[str], seed: int) -> Pixels:
    """A picture for each caption."""
    runner = source.runner("text_to_image")
    try:
        return generate_images(runner, source.tokenizer, captions, seed)
    finally:
        runner.close()


def describe(source: Source, pictures: Pixels, seed: int) -> list[str]:
    """A caption for each picture."""
    runner = source.runner("image_to_text")
    try:
        return caption_images(runner, source.tokenizer, pictures, seed)
    finally:
        runner.close()


def psnr(pictures: Pixels, restored: Pixels) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; an exact copy counts 100."""
    error = np.square(pictures.astype(np.float64) - restored).mean(axis=(1, 2, 3))
    floor = 255.0**2 * 1e-10
    return float(np.mean([10 * math.log10(255.0**2 / max(e, floor)) for e in error]))


def caption_agreement(attributes: Attributes, captions: Sequence[str]) -> dict[str, float]:
    """Share of attributes that the captions state rightly: by name, and `overall`."""
    return attribute_agreement(attributes, [parse_caption(text) for text in captions])


def picture_agreement(judge: Judge, attributes: Attributes, pictures: Pixels) -> dict[str, float]:
    """Share of attributes that the judge sees in generated pictures: by name, and `overall`."""
    return attribute_agreement(attributes, judge.predict(pictures))


def chance(attributes: Attributes) -> dict[str, float]:
    """The agreement of each sample with its neighbour: what unrelated answers would score."""
    return attribute_agreement(attributes, [*attributes[1:], *attributes[:1]])


def train_judge(split: Split, seed: int) -> Judge:
    """A judge of this data set, from its real training pictures."""
    from mmprod.evaluation.judge import train_judge as fit

    indices = np.arange(min(JUDGE_PICTURES, len(split)))
    return fit(split.images(indices), split.attributes(indices), steps=JUDGE_STEPS, seed=seed)
