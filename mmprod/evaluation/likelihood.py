"""How well a model predicts pictures and texts: any-order likelihood bounds, over any Runner.

A masked model gives p(x_i | the places that are shown). Averaged over all orders in which the S
places of a sequence can be revealed, the chain rule gives an upper bound of -log p(x) (Uria et al.
2014, "A Deep and Tractable Density Estimator", eq. 5; as the evidence bound of absorbing diffusion:
Austin et al. 2021, sec. 3.3), here without a schedule:

    bound(x) = S * E over k in 1..S, M a k-subset of  1/k * sum over i in M of -log p(x_i | x not M)

It is exact, with any model, in that its mean over masks needs no further approximation; it is tight
where the model's conditionals agree with each other. k is stratified within a sample and across
samples. The same masks serve with and without the other modality, so that of the differences, which
estimate the mutual information I(picture; text), most of the noise cancels. A difference of two
bounds is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.config.schema import Dims
from mmprod.errors import NumericsError
from mmprod.graphs.runner import Runner
from mmprod.sampling import log_likelihood

Ids = npt.NDArray[np.int32]
Nats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

GRAPH = "fusion_step"
PAD = 0


@dataclass(frozen=True)
class Mean:
    """A mean over samples and its standard error, None for a single sample."""

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Nats, unit: float = 1.0) -> Mean:
        """Of values (B,), divided by `unit`. Raises NumericsError when one is not finite."""
        if not np.isfinite(values).all():
            raise NumericsError(
                "a likelihood bound is NaN or infinite",
                hint="mmprod parity run BUNDLE --against RUN finds the graph",
            )
        error = None
        if len(values) > 1:
            error = float(values.std(ddof=1)) / math.sqrt(len(values)) / unit
        return cls(float(values.mean()) / unit, error)


@dataclass(frozen=True)
class Bounds:
    """Bounds of -log p in nats (B,) of pictures (their codes) and texts, alone and given the other.

    `sizes`: codes and pixels of a picture, tokens of all texts without padding.
    """

    image: Nats
    image_given_text: Nats
    text: Nats
    text_given_image: Nats
    codes: int
    pixels: int
    tokens: int

    def figures(self) -> dict[str, Any]:
        """Bits per picture, code, pixel, text and token, and the mutual information both ways."""
        found: dict[str, Any] = {"samples": len(self.image)}
        for name in ("image", "image_given_text"):
            bits = Mean.of(getattr(self, name), math.log(2))
            found[name] = {
                "bits": bits.value,
                "error": bits.error,
                "bits_per_code": bits.value / self.codes,
                "bits_per_pixel": bits.value / self.pixels,
            }
        for name in ("text", "text_given_image"):
            bits = Mean.of(getattr(self, name), math.log(2))
            tokens = self.tokens / len(self.text)
            found[name] = {
                "bits": bits.value,
                "error": bits.error,
                "bits_per_token": bits.value / tokens,
            }
        for name, gain in (
            ("information_from_images", self.image - self.image_given_text),
            ("information_from_texts", self.text - self.text_given_image),
        ):
            bits = Mean.of(gain, math.log(2))
            found[name] = {"bits": bits.value, "error": bits.error}
        return found


def likelihood_bounds(
    runner: Runner, dims: Dims, codes: Ids, tokens: Ids, *, draws: int = 8, seed: int = 0
) -> Bounds:
    """Bounds for pairs of pictures and texts, by the graph `fusion_step`.

    codes (B, N) in [0, K), tokens (B, L) in [0, V), padded; a text's bound includes its padding.
    draws: masks per sample, each of four calls; the result is a pure function of the arguments.
    """
    no_codes = np.full_like(codes, dims.codebook_size)
    no_tokens = np.full_like(tokens, dims.vocabulary)
    sums = {name: np.zeros(len(codes)) for name in ("image", "image|text", "text", "text|image")}
    of_codes = random_masks(len(codes), dims.positions, draws, [seed, 0])
    of_tokens = random_masks(len(tokens), dims.text_length, draws, [seed, 1])
    for hidden, silent in zip(of_codes, of_tokens, strict=True):
        masked, muted = np.where(hidden, no_codes, codes), np.where(silent, no_tokens, tokens)
        for name, shown, said in (
            ("image", masked, no_tokens),
            ("image|text", masked, tokens),
            ("text", no_codes, muted),
            ("text|image", codes, muted),
        ):
            of_image = name.startswith("image")
            output = "image_logits" if of_image else "text_logits"
            target, mask = (codes, hidden) if of_image else (tokens, silent)
            found = log_likelihood(runner, shown, said, output, target)
            sums[name] += estimate(found, mask) / draws
    return Bounds(
        sums["image"],
        sums["image|text"],
        sums["text"],
        sums["text|image"],
        dims.positions,
        dims.image_size**2,
        int((tokens != PAD).sum()),
    )


def group_terms(
    runner: Runner, dims: Dims, codes: Ids, tokens: Ids, groups: Sequence[npt.NDArray[np.int64]]
) -> Nats:
    """-log p of each group of places given the groups before it and the text: (B, groups) nats.

    The places of a group are taken as independent, so a row's sum is a code length: that of the
    compressed file, where `groups` are its groups and the tokens are wholly masked.
    """
    canvas = np.full_like(codes, dims.codebook_size)
    terms = np.zeros((len(codes), len(groups)))
    for index, places in enumerate(groups):
        found = log_likelihood(runner, canvas, tokens, "image_logits", codes)
        terms[:, index] = -found[:, places].sum(1)
        canvas[:, places] = codes[:, places]
    return terms


def random_masks(count: int, length: int, draws: int, key: list[int]) -> Iterator[Mask]:
    """`draws` masks (count, length): k places are hidden, k uniform in 1..length and stratified,
    any k of them alike.
    """
    rng = np.random.Generator(np.random.Philox(key=key))
    for draw in range(draws):
        stratum = (rng.permutation(count) + rng.random(count)) / count
        hidden = np.floor((draw + stratum) / draws * length).astype(np.int64) + 1
        rank = rng.random((count, length)).argsort(1).argsort(1)
        yield rank < np.minimum(hidden, length)[:, None]


def estimate(log_p: Nats, mask: Mask) -> Nats:
    """One draw of the bound (B,) from log p (B, S) of the hidden places."""
    nats = -np.where(mask, log_p, 0).sum(1)
    scaled: Nats = nats * (mask.shape[1] / mask.sum(1))
    return scaled
