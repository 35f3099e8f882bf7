"""A denoising step of the samplers in NumPy: what models/unmask.py says in torch, for hosts that
follow a sampler step by step over `fusion_step`. The same noise gives the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmprod.config.schema import SamplerConfig
from mmprod.graphs.runner import Array, Arrays
from mmprod.models.order import BELOW_ONE, CERTAIN, text_shares


def denoised(
    graph: Callable[[Arrays], Mapping[str, Array]],
    codes: Array,
    tokens: Array,
    step: int,
    sampler: SamplerConfig,
    blank: int,
) -> tuple[Array, Array]:
    """A call of `fusion_step`: codes (B, N), tokens (B, L) -> logits to draw from, of codes
    (B, N, K) and of tokens (B, L, V). `blank`: the token that stands for no text. As the exported
    samplers do: both with and without the text where there is guidance, once where there is none.
    """
    if not sampler.guidance:
        found = graph({"codes": codes, "tokens": tokens})
        return found["image_logits"], found["text_logits"]
    both = np.concatenate([tokens, np.full_like(tokens, blank)])
    found = graph({"codes": np.concatenate([codes, codes]), "tokens": both})
    given, free = np.split(found["image_logits"], 2)
    return guided(given, free, step, sampler), found["text_logits"][: len(tokens)]


def guided(given: Array, free: Array, step: int, sampler: SamplerConfig) -> Array:
    """Logits (B, N, K) with and without the text -> those to draw from at step 0..T-1."""
    ramp = np.float32(step + 1) / np.float32(sampler.image_steps)
    weight = np.float32(1) + np.float32(sampler.guidance) * ramp
    logits: Array = free + weight * (given - free)
    return logits


def cumulative(logits: Array, temperature: float, min_probability: float) -> Array:
    """logits (..., K) float32 -> the sums that a draw is looked up in (..., K); not normalised."""
    weight = np.exp((logits - logits.max(-1, keepdims=True)) * np.float32(1 / temperature))
    weight[weight < min_probability] = 0
    sums: Array = np.cumsum(weight, axis=-1)
    return sums


def threshold(sums: Array, uniform: Array) -> Array:
    """Sums (..., K), uniform (...) in [0, 1) -> where the draw falls (...)."""
    place: Array = uniform * sums[..., -1] * np.float32(BELOW_ONE)
    return place


def draw(logits: Array, uniform: Array, temperature: float, min_probability: float) -> Array:
    """logits (B, S, K) float32, uniform (B, S) -> ids (B, S) int32."""
    sums = cumulative(logits, temperature, min_probability)
    drawn: Array = (sums <= threshold(sums, uniform)[..., None]).sum(-1, dtype=np.int32)
    return drawn


def next_words(logits: Array, masked: Array, step: int, steps: int) -> Array:
    """logits (B, L, V), masked (B, L) bool -> which masked places a text fills in at step 0..T-1
    (B, L) bool: those that are certain, and of the others some on the left.
    """
    confidence = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    certain = masked & (confidence >= np.float32(CERTAIN))
    unsure = masked & ~certain
    share, of = text_shares(steps)[step]
    first = unsure & ((unsure.cumsum(-1) - 1) * of < unsure.sum(-1, keepdims=True) * share)
    chosen: Array = certain | first
    return chosen
