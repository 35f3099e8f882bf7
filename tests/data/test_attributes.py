"""Captions state exactly what the attributes say, and can be read back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmprod.data.attributes import (
    ATTRIBUTES,
    HELD_OUT_PAIRS,
    HIDDEN,
    LANGUAGES,
    VARIANTS,
    caption,
    check_attributes,
    is_held_out,
    parse_caption,
    sample_attributes,
    sample_held_out,
)
from mmprod.errors import ConfigError

PLAIN = {
    "hair_color": "red",
    "hair": "long",
    "hat": "none",
    "glasses": "sunglasses",
    "beard": "none",
    "expression": "sad",
    "clothes_color": "black",
    "background": "blue",
}


def all_faces() -> list[dict[str, str]]:
    """Every combination that `check_attributes` accepts."""
    faces = []
    for values in itertools.product(*ATTRIBUTES.values()):
        face = dict(zip(ATTRIBUTES, values, strict=True))
        if face["hat"] != "none":
            face["hair"] = HIDDEN
        if face["hair"] in (HIDDEN, "bald"):
            face["hair_color"] = HIDDEN
        faces.append(face)
    return [dict(face) for face in {tuple(face.items()) for face in faces}]


def test_captions_read_back_exactly_for_every_combination() -> None:
    faces = all_faces()
    assert len(faces) == (4 * 6 + 1 + 3) * 3 * 3 * 3 * 6 * 6
    for number, face in enumerate(sorted(faces, key=str)):
        variant = number % VARIANTS
        for language in LANGUAGES:
            assert parse_caption(caption(face, language, variant)) == face


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_reads_back_and_templates_differ(language: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        face = sample_attributes(rng)
        texts = [caption(face, language, variant) for variant in range(VARIANTS)]
        assert len(set(texts)) == VARIANTS
        assert [parse_caption(text) for text in texts] == [face] * VARIANTS


def test_imperfect_captions_give_what_they_state() -> None:
    assert parse_caption("") == {"hat": "none", "glasses": "none", "beard": "none"}
    assert parse_caption("a sad face, green hair, sunglasses")["glasses"] == "sunglasses"
    assert "hair_color" not in parse_caption("a sad face with long green hair")
    assert parse_caption("a hat")["hair"] == HIDDEN
    assert parse_caption("a that, glassesx")["hat"] == "none"


def test_drawn_faces_are_valid_and_never_held_out() -> None:
    rng = np.random.default_rng(1)
    faces = [sample_attributes(rng) for _ in range(2000)]
    for face in faces:
        check_attributes(face)
        assert not is_held_out(face)
    share = {
        name: np.mean([face[name] == "none" for face in faces])
        for name in ("hat", "glasses", "beard")
    }
    assert 0.6 < share["hat"] < 0.75
    assert 0.45 < share["glasses"] < 0.6
    assert 0.55 < share["beard"] < 0.7


def test_held_out_faces_show_every_pair() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(200):
        face = sample_held_out(rng)
        check_attributes(face)
        assert is_held_out(face)
        seen |= {p for p in HELD_OUT_PAIRS if all(face[name] == value for name, value in p)}
    assert seen == set(HELD_OUT_PAIRS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hair_color": "green"}, "hair_color"),
        ({"hair": HIDDEN}, "hide"),
        ({"background": HIDDEN}, "hide"),
        ({"hat": "turban"}, "hide"),
        ({"hair": "bald"}, "hide"),
        ({"shoes": "brown"}, "exactly"),
    ],
)
def test_impossible_attributes_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        caption(PLAIN | change, "en", 0)
    assert caught.value.hint


@pytest.mark.parametrize(("language", "variant"), [("fr", 0), ("en", VARIANTS), ("en", -1)])
def test_unknown_templates_are_refused(language: str, variant: int) -> None:
    with pytest.raises(ConfigError, match="template"):
        caption(PLAIN, language, variant)
