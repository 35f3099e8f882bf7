"""Bounds of likelihood, on a source whose every probability is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mmprod.bitstream.blocks import blocks_of
from mmprod.bitstream.fusion_prior import FusionPrior
from mmprod.bitstream.picture import CodecId
from mmprod.bitstream.tables import STEPS, TOTAL, UNIFORM_SHARE
from mmprod.config.schema import Dims, FusionConfig, SamplerConfig
from mmprod.errors import NumericsError
from mmprod.evaluation.likelihood import (
    Bounds,
    Mean,
    estimate,
    group_terms,
    likelihood_bounds,
    random_masks,
)
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.runner import Array, Arrays
from mmprod.models.fusion import build_fusion
from mmprod.models.fusion_loss import FusionObjective, draw_noise
from mmprod.sampling import log_likelihood

K, V, N, L = 3, 4, 4, 2
"""codes, tokens (0 is padding and never comes here), places of a picture (2 x 2) and of a text"""
DIMS = Dims(4, 2, K, L, V, 8, 2)
SPECS = build_catalog(DIMS, SamplerConfig(image_steps=2, text_steps=2))


def joint() -> npt.NDArray[np.float64]:
    """p(codes, tokens): the first token names a kind, the second means nothing; each code is that
    of the kind with probability 0.8, else any.
    """
    p = np.zeros((K,) * N + (V,) * L)
    for codes in product(range(K), repeat=N):
        for kind, other in product(range(1, V), repeat=L):
            likely = [0.8 * (code == kind - 1) + 0.2 / K for code in codes]
            p[(*codes, kind, other)] = math.prod(likely) / (V - 1) ** L
    return p


JOINT = joint()
NO_TEXT = np.full((1, L), V, np.int32)


def entropy(p: npt.NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


IMAGE = entropy(JOINT.sum(axis=(N, N + 1)))
TEXT = entropy(JOINT.sum(axis=tuple(range(N))))
BOTH = entropy(JOINT)


@cache
def known(ids: tuple[int, ...]) -> tuple[Array, Array]:
    """Logits at all places of codes and of tokens, given the ids that are shown."""
    sizes = (K,) * N + (V,) * L
    shown = [None if i == size else i for i, size in zip(ids, sizes, strict=True)]
    rest = JOINT[tuple(slice(None) if i is None else slice(i, i + 1) for i in shown)]
    found = [np.zeros(size) for size in sizes]
    for place, i in enumerate(shown):
        if i is None:
            others = tuple(axis for axis in range(N + L) if axis != place)
            found[place] = np.log(rest.sum(axis=others) + 1e-30)
    return np.stack(found[:N]), np.stack(found[N:])


Row = Callable[[tuple[int, ...]], tuple[Array, Array]]


class Source:
    """The graphs `fusion_step` and `code_prior` of a model that knows the source by heart, or of
    another, whose logits `row` has.
    """

    backend = "exact"

    def __init__(self, name: str = "fusion_step", row: Row = known) -> None:
        self.spec, self._row = SPECS[name], row

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        codes = inputs["codes"]
        tokens = inputs.get("tokens", np.full((len(codes), L), V))
        rows = [self._row(tuple(map(int, row))) for row in np.concatenate([codes, tokens], 1)]
        image, text = (np.stack(part).astype(np.float32) for part in zip(*rows, strict=True))
        if self.spec.name == "code_prior":
            return {"logits": image}
        return {"image_logits": image, "text_logits": text}

    def close(self) -> None:
        pass


def samples(count: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    flat = rng.choice(JOINT.size, size=count, p=JOINT.reshape(-1))
    ids = np.stack(np.unravel_index(flat, JOINT.shape), 1).astype(np.int32)
    return ids[:, :N], ids[:, N:]


def mean_over_masks(source: Source, codes: Array, tokens: Array, output: str) -> Array:
    """The bound (B,) by all masks there are, of the modality that `output` speaks of."""
    target, mask_id = (codes, K) if output == "image_logits" else (tokens, V)
    length = target.shape[1]
    total = np.zeros(len(target))
    for hidden in range(1, length + 1):
        subsets = list(combinations(range(length), hidden))
        for places in subsets:
            mask = np.zeros(target.shape, bool)
            mask[:, places] = True
            shown = np.where(mask, mask_id, target).astype(np.int32)
            one, other = (shown, tokens) if target is codes else (codes, shown)
            log_p = log_likelihood(source, one, other, output, target)
            total += estimate(log_p, mask) / len(subsets) / length
    return total


@pytest.mark.parametrize("text", [True, False])
def test_the_mean_over_all_masks_is_the_exact_likelihood(text: bool) -> None:
    codes, tokens = samples(5)
    shown = tokens if text else np.repeat(NO_TEXT, 5, 0)
    p = JOINT.sum(axis=(N, N + 1))[tuple(codes.T)]
    if text:
        p = JOINT[(*codes.T, *tokens.T)] * (V - 1) ** L
    total = mean_over_masks(Source(), codes, shown, "image_logits")
    np.testing.assert_allclose(total, -np.log(p), rtol=1e-6)


def test_masks_hide_every_number_of_places_and_every_place_equally_often() -> None:
    masks = np.concatenate(list(random_masks(60, 6, 4, [7, 0])))
    hidden = masks.sum(1)
    assert np.bincount(hidden, minlength=7).tolist() == [0] + [40] * 6
    per_sample = hidden.reshape(4, 60).sum(0)
    assert per_sample.std() < 0.6 * math.sqrt(4) * hidden.std()  # strata within a sample
    assert np.abs(masks.mean(0) - 3.5 / 6).max() < 0.1
    again = np.concatenate(list(random_masks(60, 6, 4, [7, 0])))
    np.testing.assert_array_equal(masks, again)
    assert (np.concatenate(list(random_masks(60, 6, 4, [8, 0]))) != masks).any()


def check(bounds: Bounds, share: float, of_information: float) -> None:
    """Every bound within a share of the source's entropy, information within another."""
    information = IMAGE + TEXT - BOTH
    for name, known in (
        ("image", IMAGE),
        ("image_given_text", BOTH - TEXT),
        ("text", TEXT),
        ("text_given_image", BOTH - IMAGE),
    ):
        assert getattr(bounds, name).mean() == pytest.approx(known, rel=share), name
    figures = bounds.figures()
    for name in ("information_from_images", "information_from_texts"):
        bits = figures[name]["bits"]
        assert bits == pytest.approx(information / math.log(2), rel=of_information), name


def test_bounds_of_a_known_source_are_its_entropies() -> None:
    codes, tokens = samples(12000)
    bounds = likelihood_bounds(Source(), DIMS, codes, tokens, draws=2)
    check(bounds, 0.02, 0.05)
    figures = bounds.figures()
    assert figures["image"]["bits_per_code"] == pytest.approx(IMAGE / math.log(2) / N, rel=0.02)
    assert figures["image"]["bits_per_pixel"] == pytest.approx(IMAGE / math.log(2) / 16, rel=0.02)
    assert figures["text"]["bits_per_token"] == pytest.approx(TEXT / math.log(2) / L, rel=0.02)
    assert 0 < figures["image"]["error"] < 0.02 * figures["image"]["bits"]


def test_a_text_of_another_picture_is_worth_nothing() -> None:
    codes, tokens = samples(600)
    shuffled = likelihood_bounds(Source(), DIMS, codes, np.roll(tokens, 1, axis=0), draws=2)
    assert shuffled.figures()["information_from_images"]["bits"] < 0


def test_group_terms_are_the_chain_rule_and_the_length_of_a_file() -> None:
    codes, _ = samples(40)
    shape = (1, 2, 2)
    block = next(iter(blocks_of([shape], 2)))
    bounds = list(zip(block.bounds, block.bounds[1:], strict=False))
    groups = [block.canvas[start:stop] for start, stop in bounds]
    no_text = np.repeat(NO_TEXT, len(codes), 0)
    terms = group_terms(Source(), DIMS, codes, no_text, groups)
    assert terms.shape == (40, len(groups))
    p = JOINT.sum(axis=(N, N + 1))
    np.testing.assert_allclose(terms.sum(1), -np.log(p[tuple(codes.T)]), rtol=1e-4)
    prior = FusionPrior(CodecId("0" * 64, K, 1, 2), Source("code_prior"))
    payload = prior.encode(codes[0], [shape])
    assert payload.bits == pytest.approx(terms[0].sum() / math.log(2), rel=0.01)


def test_a_file_is_as_long_as_the_sum_of_its_group_terms() -> None:
    """With what the format does to a model: logits in eighths, a small share dealt evenly."""
    even = UNIFORM_SHARE // K / TOTAL

    def in_eighths(ids: tuple[int, ...]) -> tuple[Array, Array]:
        image, text = known(ids)
        return np.round(STEPS * (image - image.max(-1, keepdims=True))) / STEPS, text

    def dealt(ids: tuple[int, ...]) -> tuple[Array, Array]:
        image, text = in_eighths(ids)
        p = np.exp(image)
        p /= p.sum(-1, keepdims=True)
        return np.log((1 - K * even) * p + even), text

    codes, _ = samples(40)
    shape = (1, 2, 2)
    block = next(iter(blocks_of([shape], 2)))
    bounds = zip(block.bounds, block.bounds[1:], strict=False)
    groups = [block.canvas[start:stop] for start, stop in bounds]
    no_text = np.repeat(NO_TEXT, len(codes), 0)
    terms = group_terms(Source(row=dealt), DIMS, codes, no_text, groups)
    prior = FusionPrior(CodecId("0" * 64, K, 1, 2), Source("code_prior", in_eighths))
    for own, row in zip(terms, codes, strict=True):
        bits = prior.encode(row, [shape]).bits
        assert bits == pytest.approx(own.sum() / math.log(2), rel=1e-4)


def test_one_group_takes_all_places_as_independent() -> None:
    codes, _ = samples(6)
    terms = group_terms(Source(), DIMS, codes, np.repeat(NO_TEXT, 6, 0), [np.arange(N)])
    alone = JOINT.sum(axis=tuple(range(1, N + L)))
    np.testing.assert_allclose(terms[:, 0], -np.log(alone[codes]).sum(1), rtol=1e-5)


def test_one_sample_has_no_error_and_a_broken_model_no_figure() -> None:
    assert Mean.of(np.array([2.0]), 2.0) == Mean(1.0, None)
    two = Mean.of(np.array([1.0, 3.0]))
    assert (two.value, two.error) == (2.0, pytest.approx(1.0))
    with pytest.raises(NumericsError, match="bound is NaN"):
        Mean.of(np.array([1.0, np.nan]))


@pytest.mark.slow
def test_a_trained_model_finds_the_entropies_of_the_source() -> None:
    torch.manual_seed(0)
    cfg = FusionConfig(
        width=32, heads=2, image_encoder=1, text_encoder=1, joint=1, shared=1, registers=1,
        embedding=8, contrastive_weight=0.0,
    )  # fmt: skip
    fusion = build_fusion(cfg, DIMS)
    objective = FusionObjective(fusion, cfg, DIMS)
    steps, batch = 400, 256
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        pair = (torch.from_numpy(ids) for ids in samples(batch, seed=step + 1))
        loss = objective(*pair, draw_noise(generator, batch, DIMS))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    states = np.array(list(product(*[range(K + 1)] * N, *[range(V + 1)] * L)), np.int32)
    fusion.eval()
    with torch.inference_mode():
        of_image, of_text = fusion(torch.from_numpy(states[:, :N]), torch.from_numpy(states[:, N:]))
    place = {tuple(state): index for index, state in enumerate(states.tolist())}
    learned = Source(row=lambda ids: (of_image[place[ids]].numpy(), of_text[place[ids]].numpy()))
    every = np.argwhere(JOINT > 0).astype(np.int32)
    share = JOINT[tuple(every.T)]
    codes, tokens = every[:, :N], every[:, N:]
    hidden, silent = np.full_like(codes, K), np.full_like(tokens, V)
    image = share @ mean_over_masks(learned, codes, silent, "image_logits")
    image_given_text = share @ mean_over_masks(learned, codes, tokens, "image_logits")
    text = share @ mean_over_masks(learned, hidden, tokens, "text_logits")
    text_given_image = share @ mean_over_masks(learned, codes, tokens, "text_logits")
    assert image == pytest.approx(IMAGE, rel=0.02)
    assert image_given_text == pytest.approx(BOTH - TEXT, rel=0.02)
    assert text == pytest.approx(TEXT, rel=0.02)
    assert text_given_image == pytest.approx(BOTH - IMAGE, rel=0.02)
    information = IMAGE + TEXT - BOTH
    assert image - image_given_text == pytest.approx(information, rel=0.05)
    assert text - text_given_image == pytest.approx(information, rel=0.05)
