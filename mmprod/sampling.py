"""Using the samplers from the host: words to pictures, back, both at once, and edits, over any
Runner.

The graphs hold the whole sampler; what is left here is tokenizing, noise and batching, which places
of a picture an edit draws anew, and which of several candidates is best. Noise is a pure function
of (seed, index of the sample), so a picture does not depend on the batch it was made in, nor on the
backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmprod.config.schema import Dims
from mmprod.graphs.runner import Array, Runner

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]


class Tokens(Protocol):
    """What sampling needs of a tokenizer."""

    def encode(self, texts: list[str], length: int) -> npt.NDArray[np.int32]: ...

    def decode(self, ids: npt.NDArray[np.int32]) -> list[str]: ...


@dataclass(frozen=True)
class Drawn:
    """Pictures (B, H, W, 3) uint8, their codes (B, N), and tokens (B, L) that belong to them."""

    pixels: Pixels
    codes: Ids
    tokens: Ids

    def only(self, rows: npt.NDArray[np.intp]) -> Drawn:
        return Drawn(self.pixels[rows], self.codes[rows], self.tokens[rows])


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
    return draw_images(runner, encode_captions(runner, tokenizer, captions), seed).pixels


def encode_captions(runner: Runner, tokenizer: Tokens, captions: Sequence[str]) -> Ids:
    """captions -> tokens (B, L) of the length that the graph takes."""
    return tokenizer.encode(list(captions), int(runner.spec.input("tokens").sizes_at("min")[1]))


def draw_images(runner: Runner, tokens: Ids, seed: int = 0) -> Drawn:
    """tokens (B, L) -> pictures by the graph `text_to_image`."""
    found = _sample(runner, {"tokens": tokens}, len(tokens), seed)
    return Drawn(found["pixels"], found["codes"], tokens)


def draw_joint(runner: Runner, count: int, seed: int = 0) -> Drawn:
    """Pictures with their captions, both out of nothing, by the graph `joint`."""
    return Drawn(**_sample(runner, {}, count, seed))


def draw_unconditional(runner: Runner, dims: Dims, count: int, seed: int = 0) -> Drawn:
    """Pictures out of nothing by the graph `edit`, which keeps no place and is told no word."""
    size = dims.image_size
    keep = np.zeros((count, dims.positions), np.int32)
    blank = np.zeros((count, size, size, 3), np.uint8)
    return edit_images(runner, blank, keep, no_words(dims, count), seed)


def no_words(dims: Dims, count: int) -> Ids:
    """Wholly masked tokens (B, L): the model is told nothing."""
    return np.full((count, dims.text_length), dims.vocabulary, np.int32)


def edit_images(runner: Runner, originals: Pixels, keep: Ids, tokens: Ids, seed: int = 0) -> Drawn:
    """Pictures whose places with keep 0 are drawn anew, by the graph `edit`.

    originals (B, H, W, 3) uint8, keep (B, N) int32 of 0 and 1, tokens (B, L), which may be masked.
    The codes of kept places stay as they are.
    """
    inputs: dict[str, Array] = {"original": originals, "keep": keep, "tokens": tokens}
    found = _sample(runner, inputs, len(originals), seed)
    return Drawn(found["pixels"], found["codes"], tokens)


def caption_images(runner: Runner, tokenizer: Tokens, images: Pixels, seed: int = 0) -> list[str]:
    """pictures (B, H, W, 3) uint8 -> captions by the graph `image_to_text`. Sample i uses noise
    (seed, i).
    """
    return tokenizer.decode(_sample(runner, {"pixels": images}, len(images), seed)["tokens"])


def places_outside(redraw: npt.NDArray[np.bool_], dims: Dims) -> Ids:
    """A mask of pixels to draw anew (H, W) -> keep (N,) int32: 0 for a place with any such pixel,
    in every plane.
    """
    side = dims.image_size // dims.grid
    cells = redraw.reshape(dims.grid, side, dims.grid, side).any(axis=(1, 3))
    return np.tile(~cells.reshape(-1), dims.planes).astype(np.int32)


def places_that_agree(
    runner: Runner, dims: Dims, codes: Ids, captions: tuple[Ids, Ids], strength: float
) -> Ids:
    """codes (B, N), tokens (B, L) of the old and of the new caption -> keep (B, N) int32.

    The share `strength` of the cells, at least one, is drawn anew: those whose codes lose most
    likelihood, in either view, when the new caption takes the place of the old. Needs the graph
    `fusion_step`.
    """
    old, new = (hidden_likelihood(runner, dims, codes, tokens) for tokens in captions)
    loss = (old - new).max(0).reshape(len(codes), dims.planes, -1).sum(1)
    count = max(1, round(strength * loss.shape[1]))
    worst = np.argsort(-loss, axis=1, kind="stable")[:, :count]
    keep = np.ones(loss.shape, np.int32)
    np.put_along_axis(keep, worst, 0, axis=1)
    return np.tile(keep, (1, dims.planes))


def hidden_likelihood(
    runner: Runner, dims: Dims, codes: Ids, tokens: Ids
) -> npt.NDArray[np.float64]:
    """log p of each code in two views (2, B, N): given the text alone, and given the text and a
    quarter of the other places.

    The first hears of large plain areas, whose places give each other away; the second knows where
    small things are. In the second each of four interleaved quarters is shown in turn, and a place
    has the mean of the three turns in which it was hidden.
    """
    quarter = _quarters(dims)
    alone = _log_likelihood(runner, dims, codes, tokens, np.ones(codes.shape, np.bool_))
    total = np.zeros(codes.shape)
    for shown in range(4):
        hidden = np.broadcast_to(quarter != shown, codes.shape)
        total += np.where(hidden, _log_likelihood(runner, dims, codes, tokens, hidden), 0)
    return np.stack([alone, total / 3])


def likelihood(runner: Runner, dims: Dims, codes: Ids, tokens: Ids) -> npt.NDArray[np.float64]:
    """log p(codes | text) (B,) by the chain rule over four interleaved quarters of the places,
    those of a quarter taken as independent. Needs the graph `fusion_step`.
    """
    quarter = _quarters(dims)
    total = np.zeros(len(codes))
    for turn in range(4):
        hidden = np.broadcast_to(quarter >= turn, codes.shape)
        found = _log_likelihood(runner, dims, codes, tokens, hidden)
        total += found[:, quarter == turn].sum(1)
    return total


def log_likelihood(
    runner: Runner, codes: Ids, tokens: Ids, output: str, target: Ids
) -> npt.NDArray[np.float64]:
    """log p of each `target` id (B, S) under the logits `output` of the graph `fusion_step`, given
    codes (B, N) and tokens (B, L) that may be masked. In float64, in batches it allows.
    """
    parts = []
    for rows in _batches(runner, len(codes)):
        logits = runner({"codes": codes[rows], "tokens": tokens[rows]})[output].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        own = np.take_along_axis(logits, target[rows][..., None].astype(np.int64), -1)[..., 0]
        parts.append(own - np.log(np.exp(logits).sum(-1)))
    return np.concatenate(parts)


def similarity(
    image_runner: Runner, text_runner: Runner, codes: Ids, tokens: Ids
) -> npt.NDArray[np.float64]:
    """Cosine (B,) between pictures and texts, by the graphs `embed_image` and `embed_text`."""
    images = run_batched(image_runner, "codes", codes)["embedding"]
    texts = run_batched(text_runner, "tokens", tokens)["embedding"]
    cosine: npt.NDArray[np.float64] = np.einsum("be,be->b", images.astype(np.float64), texts)
    return cosine


class MeanOfSteps:
    """A Runner of `fusion_step`: the mean of the logits of several models that share codes and
    tokens, which draws from the product of what they draw from. Batches of any size.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = tuple(runners)
        self.spec = self._runners[0].spec
        self.backend = f"{len(self._runners)} models on {self._runners[0].backend}"

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`."""
        parts = []
        for rows in _batches(self._runners[0], len(inputs["codes"])):
            batch = {name: values[rows] for name, values in inputs.items()}
            found = [runner(batch) for runner in self._runners]
            parts.append({name: np.mean([one[name] for one in found], 0) for name in found[0]})
        return _joined(parts)

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


def best_of(drawn: Drawn, scores: npt.NDArray[np.float64], count: int) -> Drawn:
    """Of every `count` candidates in a row the one with the highest score, the first of equals."""
    best = scores.reshape(-1, count).argmax(1)
    return drawn.only(np.arange(len(best)) * count + best)


def run_batched(runner: Runner, name: str, values: Array) -> dict[str, Array]:
    """Run a graph of one input over many samples, in batches it allows; outputs concatenated."""
    return _joined([runner({name: values[rows]}) for rows in _batches(runner, len(values))])


def _sample(runner: Runner, inputs: Mapping[str, Array], count: int, seed: int) -> dict[str, Array]:
    """Run a sampler graph over many samples, in batches it allows; sample i: noise (seed, i)."""
    parts = []
    for rows in _batches(runner, count):
        batch: dict[str, Array] = {name: values[rows] for name, values in inputs.items()}
        batch["noise"] = noise(runner, seed, range(rows.start, rows.stop))
        parts.append(runner(batch))
    return _joined(parts)


def _log_likelihood(
    runner: Runner, dims: Dims, codes: Ids, tokens: Ids, hidden: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """log p of each code (B, N), the `hidden` ones masked; of no meaning where one is shown."""
    masked = np.where(hidden, np.int32(dims.codebook_size), codes)
    return log_likelihood(runner, masked, tokens, "image_logits", codes)


def _quarters(dims: Dims) -> npt.NDArray[np.int64]:
    """Which of four interleaved quarters each place (N,) belongs to, alike in every plane."""
    row, column = np.divmod(np.arange(dims.grid**2), dims.grid)
    order = np.array([0, 3, 2, 1])  # diagonal neighbours first
    return np.tile(order[row % 2 * 2 + column % 2], dims.planes)


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _batches(runner: Runner, count: int) -> Iterator[slice]:
    """Slices of at most the largest batch of the graph."""
    largest = runner.spec.dims[0].max
    return (slice(start, min(start + largest, count)) for start in range(0, count, largest))
