"""What a model makes of held-out samples, through its runners: the same for PyTorch and a bundle.

`evaluation` turns it into figures: reconstructions are compared pixel by pixel, captions are read
back into attributes, and generated faces are read by a judge, a classifier that was trained on real
pictures and has never seen a generated one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmprod.cli.source import Source
from mmprod.data.attributes import SCORED
from mmprod.evaluation.agreement import Attributes
from mmprod.sampling import caption_images, generate_images, run_batched

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmprod.data.store import Split
    from mmprod.evaluation.judge import Judge

    Pixels = npt.NDArray[np.uint8]
    Ids = npt.NDArray[np.int32]

JUDGE_STEPS = 300
JUDGE_PICTURES = 4000
"""Real pictures that the judge learns from, at most."""


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


def encode(source: Source, held_out: Sample) -> tuple[Ids, Ids]:
    """Codes (B, N) of the pictures and tokens (B, L) of the captions."""
    runner = source.runner("codec_encode")
    try:
        codes = run_batched(runner, "pixels", held_out.pictures)["codes"]
    finally:
        runner.close()
    return codes, source.tokenizer.encode(held_out.captions, source.dims.text_length)


def likelihood(
    source: Source, codes: Ids, tokens: Ids, draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of `evaluation.likelihood.Bounds`, of pictures and captions that belong together."""
    from mmprod.evaluation.likelihood import GRAPH, likelihood_bounds

    runner = source.runner(GRAPH)
    try:
        return likelihood_bounds(
            runner, source.dims, codes, tokens, draws=draws, seed=seed
        ).figures()
    finally:
        runner.close()


def search(
    source: Source, codes: Ids, tokens: Ids, captions: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Recall of the search among these samples, both ways; items of the same caption are one."""
    from mmprod.evaluation.retrieval import chance_recall, recalls

    found = {}
    for graph, name, ids in (("embed_image", "codes", codes), ("embed_text", "tokens", tokens)):
        runner = source.runner(graph)
        try:
            found[graph] = run_batched(runner, name, ids)["embedding"]
        finally:
            runner.close()
    words = np.array(captions)
    right = words[:, None] == words[None, :]
    images, texts = found["embed_image"], found["embed_text"]
    guess = {"chance": chance_recall(right)}
    return {
        "text_to_image": recalls(texts, images, right) | guess,
        "image_to_text": recalls(images, texts, right) | guess,
    }


def train_judge(split: Split, seed: int) -> Judge:
    """A judge of this data set, from its real training pictures."""
    from mmprod.evaluation.judge import train_judge as fit

    indices = np.arange(min(JUDGE_PICTURES, len(split)))
    return fit(split.images(indices), split.attributes(indices), steps=JUDGE_STEPS, seed=seed)
