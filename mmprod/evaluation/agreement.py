"""How often attributes that were asked for are the attributes that were found (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mmprod.data.attributes import ATTRIBUTES, HELD_OUT_PAIRS, HIDDEN, SCORED, parse_caption
from mmprod.errors import ConfigError
from mmprod.evaluation.pictures import Pixels

Attributes = Sequence[dict[str, str]]
"""Attributes of each sample, {} where it has none."""


class Judge(Protocol):
    """What reads attributes off pictures (see judge.py)."""

    def predict(self, pictures: Pixels) -> list[dict[str, str]]:
        """pictures (B, H, W, 3) uint8 -> the attributes of each."""


def attribute_agreement(
    wanted: Sequence[Mapping[str, str]],
    got: Sequence[Mapping[str, str]],
    names: Sequence[str] = SCORED,
) -> dict[str, float]:
    """The share in [0, 1] of wanted values that were found: per attribute, and "overall" over
    `names`.

    A wanted value that is hidden or absent is not scored; a found one that is absent is wrong.
    "overall" counts every scored value once. An attribute that was never scored is left out.
    Raises ConfigError when the lists differ in length or nothing at all can be scored.
    """
    if len(wanted) != len(got):
        raise ConfigError(
            f"{len(wanted)} wanted and {len(got)} found sets of attributes",
            hint="give one set of found attributes for each wanted one",
        )
    right = dict.fromkeys(names, 0)
    scored = dict.fromkeys(names, 0)
    for want, have in zip(wanted, got, strict=True):
        for name in names:
            if want.get(name, HIDDEN) != HIDDEN:
                scored[name] += 1
                right[name] += want[name] == have.get(name)
    if not any(scored.values()):
        raise ConfigError(
            f"none of {', '.join(names)} is visible in any sample",
            hint="agreement needs a data set with attributes, such as the generated avatars",
        )
    result = {name: right[name] / scored[name] for name in names if scored[name]}
    return result | {"overall": sum(right.values()) / sum(scored.values())}


def exact_agreement(
    wanted: Sequence[Mapping[str, str]],
    got: Sequence[Mapping[str, str]],
    names: Sequence[str] = SCORED,
) -> float:
    """The share of samples in which every scored value was found, none of `names` wrong."""
    right = [
        all(want.get(name, HIDDEN) in (HIDDEN, have.get(name)) for name in names)
        for want, have in zip(wanted, got, strict=True)
    ]
    return sum(right) / len(right)


def pair_agreement(
    wanted: Sequence[Mapping[str, str]], got: Sequence[Mapping[str, str]]
) -> float | None:
    """The share of pairs of `HELD_OUT_PAIRS` that are wanted and of which both values were found;
    None where none is wanted.
    """
    found = [
        all(have.get(name) == value for name, value in pair)
        for want, have in zip(wanted, got, strict=True)
        for pair in HELD_OUT_PAIRS
        if all(want.get(name) == value for name, value in pair)
    ]
    return sum(found) / len(found) if found else None


def stated(caption: str) -> dict[str, str]:
    """What a caption says. That it names no hat, glasses or beard counts as "none" only where it
    states all else: words that describe no face, or none at all, state nothing.
    """
    found = parse_caption(caption)
    if set(found) == set(ATTRIBUTES):
        return found
    return {name: value for name, value in found.items() if value != "none"}


def caption_agreement(attributes: Attributes, captions: Sequence[str]) -> dict[str, float]:
    """Share of attributes that the captions state rightly: by name, and `overall`."""
    return attribute_agreement(attributes, [stated(text) for text in captions])


def picture_agreement(judge: Judge, attributes: Attributes, pictures: Pixels) -> dict[str, float]:
    """Share of attributes that the judge sees in generated pictures: by name, and `overall`."""
    return attribute_agreement(attributes, judge.predict(pictures))


def chance(attributes: Attributes) -> dict[str, float]:
    """The agreement of each sample with its neighbour: what unrelated answers would score."""
    return attribute_agreement(attributes, [*attributes[1:], *attributes[:1]])
