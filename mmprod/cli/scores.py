"""What a model makes of held-out samples, through its runners: the same for PyTorch and a bundle.

`evaluation` turns it into figures: reconstructions are compared pixel by pixel, captions with
references and, read back, with attributes, and generated faces are read by a judge, a classifier
that was trained on real pictures and has never seen a generated one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmprod.cli.source import Source
from mmprod.data.attributes import LANGUAGES, SCORED
from mmprod.evaluation.agreement import Attributes
from mmprod.sampling import (
    caption_images,
    draw_joint,
    edit_images,
    generate_images,
    places_outside,
    run_batched,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmprod.data.store import Split
    from mmprod.evaluation.judge import Judge

    Pixels = npt.NDArray[np.uint8]
    Ids = npt.NDArray[np.int32]
    Vectors = npt.NDArray[np.float32]

GREY = 128
JUDGE_STEPS = 300
JUDGE_PICTURES = 4000
"""Real pictures that the judge learns from, at most."""


@dataclass(frozen=True)
class Sample:
    """Held-out pictures (B, H, W, 3) uint8, a caption of each, their attributes ({}: none), and
    all captions of each in any language.
    """

    pictures: Pixels
    captions: list[str]
    attributes: Attributes
    references: list[list[str]]

    @property
    def scorable(self) -> bool:
        """Whether words and generated pictures can be compared with known attributes."""
        return all(set(SCORED) & set(attributes) for attributes in self.attributes)


def sample(split: Split, count: int, languages: Sequence[str]) -> Sample:
    """The first `count` samples of a split, or all there are."""
    indices = np.arange(min(count, len(split)))
    captions = split.captions(indices, languages, 0)
    references = split.references(indices, LANGUAGES)
    return Sample(split.images(indices), captions, split.attributes(indices), references)


def reconstruct(source: Source, pictures: Pixels) -> Pixels:
    """pictures -> codes -> pictures, by the graphs codec_encode and codec_decode."""
    codes = codes_of(source, pictures)
    with closing(source.runner("codec_decode")) as runner:
        return run_batched(runner, "codes", codes)["pixels"].astype(np.uint8, copy=False)


def draw(source: Source, captions: Sequence[str], seed: int) -> Pixels:
    """A picture for each caption."""
    with closing(source.runner("text_to_image")) as runner:
        return generate_images(runner, source.tokenizer, captions, seed)


def describe(source: Source, pictures: Pixels, seed: int) -> list[str]:
    """A caption for each picture."""
    with closing(source.runner("image_to_text")) as runner:
        return caption_images(runner, source.tokenizer, pictures, seed)


def draw_both(source: Source, count: int, seed: int) -> tuple[Pixels, list[str]]:
    """Pictures and their captions, drawn together out of nothing."""
    with closing(source.runner("joint")) as runner:
        drawn = draw_joint(runner, count, seed)
    return drawn.pixels, source.tokenizer.decode(drawn.tokens)


@dataclass(frozen=True)
class Inpainted:
    """Pictures (B, H, W, 3) uint8 with a hole in grey, and as they were filled; the share of codes
    outside the holes that stayed as they were, and the share of codes that lie in holes.
    """

    holes: Pixels
    filled: Pixels
    kept: float
    redrawn: float


def inpaint(source: Source, held_out: Sample, codes: Ids, tokens: Ids, seed: int) -> Inpainted:
    """Every picture with a part drawn anew for its caption: in turn a half of it, and its middle.

    codes (B, N) are those of the pictures, tokens (B, L) those of the captions.
    """
    shapes = _holes(source.dims.image_size)
    redraw = np.stack([shapes[i % len(shapes)] for i in range(len(codes))])
    keep = np.stack([places_outside(hole, source.dims) for hole in redraw])
    with closing(source.runner("edit")) as runner:
        drawn = edit_images(runner, held_out.pictures, keep, tokens, seed)
    same = (drawn.codes == codes)[keep > 0]
    holes = np.where(redraw[..., None], np.uint8(GREY), held_out.pictures)
    return Inpainted(holes, drawn.pixels, float(same.mean()), float(1 - keep.mean()))


def _holes(side: int) -> list[npt.NDArray[np.bool_]]:
    """Masks of pixels (H, W): left, lower, right, upper half, and the middle quarter."""
    row, column = np.mgrid[:side, :side]
    half = side // 2
    middle = (abs(row - half) < side // 4) & (abs(column - half) < side // 4)
    return [column < half, row >= half, column >= half, row < half, middle]


def codes_of(source: Source, pictures: Pixels) -> Ids:
    """pictures -> codes (B, N)."""
    with closing(source.runner("codec_encode")) as runner:
        codes: Ids = run_batched(runner, "pixels", pictures)["codes"]
    return codes


def encode(source: Source, held_out: Sample) -> tuple[Ids, Ids]:
    """Codes (B, N) of the pictures and tokens (B, L) of the captions."""
    tokens = source.tokenizer.encode(held_out.captions, source.dims.text_length)
    return codes_of(source, held_out.pictures), tokens


def likelihood(
    source: Source, codes: Ids, tokens: Ids, draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of `evaluation.likelihood.Bounds`, of pictures and captions that belong together."""
    from mmprod.evaluation.likelihood import GRAPH, likelihood_bounds

    with closing(source.runner(GRAPH)) as runner:
        found = likelihood_bounds(runner, source.dims, codes, tokens, draws=draws, seed=seed)
    return found.figures()


def embed(source: Source, codes: Ids, tokens: Ids) -> tuple[Vectors, Vectors]:
    """Search embeddings (B, E) of pictures and of texts, by the towers alone."""
    with closing(source.runner("embed_image")) as runner:
        images = run_batched(runner, "codes", codes)["embedding"]
    with closing(source.runner("embed_text")) as runner:
        texts = run_batched(runner, "tokens", tokens)["embedding"]
    return images.astype(np.float32, copy=False), texts.astype(np.float32, copy=False)


def search(images: Vectors, texts: Vectors, captions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Recall of the search among these samples, both ways; items of the same caption are one."""
    from mmprod.evaluation.retrieval import chance_recall, recalls

    words = np.array(captions)
    right = words[:, None] == words[None, :]
    guess = {"items": len(words), "chance": chance_recall(right)}
    return {
        "text_to_image": recalls(texts, images, right) | guess,
        "image_to_text": recalls(images, texts, right) | guess,
    }


def train_judge(split: Split, seed: int) -> Judge:
    """A judge of this data set, from its real training pictures."""
    from mmprod.evaluation.judge import train_judge as fit

    indices = np.arange(min(JUDGE_PICTURES, len(split)))
    return fit(split.images(indices), split.attributes(indices), steps=JUDGE_STEPS, seed=seed)
