"""Captions against references: the published figures, and what must always hold."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprod.errors import ConfigError
from mmprod.evaluation.words import Pairs, Words, cider_d, kind_of, rouge_l, word_figures

WRITTEN = (
    "a smiling face with short red hair , glasses",
    "portrait , sad , a hat , a beard",
    "a sad person in blue clothes",
)
REFERENCES = (
    (
        "a smiling face with long red hair , glasses , blue clothes",
        "smiling person with red hair",
    ),
    ("portrait , sad , a hat , a moustache",),
    ("sad person in green clothes", "a person in blue clothes , sad", "blue clothes"),
)

words = st.sampled_from(["a", "red", "hat", "of", "the", "sad", "face"])
captions = st.lists(words, max_size=9).map(tuple)


def split(texts: tuple[str, ...]) -> tuple[Words, ...]:
    return tuple(tuple(text.split()) for text in texts)


PAIRS = Pairs(split(WRITTEN), tuple(split(texts) for texts in REFERENCES))


def test_figures_of_the_published_implementations() -> None:
    """rouge-score 0.1.2 and the CIDEr-D of pycocoevalcap 1.2 on the same words."""
    found = [rouge_l(*pair) for pair in zip(PAIRS.written, PAIRS.references, strict=True)]
    assert found == pytest.approx([0.761904761904762, 0.8888888888888888, 0.7692307692307692])
    assert cider_d(PAIRS) == pytest.approx(5.017916141800476, rel=1e-12)


def test_bleu_counts_clipped_words_of_any_reference() -> None:
    figures = word_figures(["the the the cat"], [["the cat sat here", "the dog"]])["13a"]
    assert figures["bleu_1"] == pytest.approx(2 / 4)
    assert figures["bleu_2"] == pytest.approx((2 / 4 * 1 / 3) ** 0.5)
    assert "tok:13a" in figures["signature"] and "case:lc" in figures["signature"]
    assert figures["references"] == 2


def test_copies_are_perfect_and_case_is_none() -> None:
    texts = ["A face, smiling.", "a hat and a beard", "short brown hair, glasses"]
    figures = word_figures([text.upper() for text in texts], [[text] for text in texts])["13a"]
    assert all(figures[f"bleu_{n}"] == pytest.approx(1) for n in range(1, 5))
    assert figures["rouge_l"] == 1
    assert figures["cider_d"] == pytest.approx(10)


def test_each_language_is_held_against_its_own_references() -> None:
    references = [["a smiling face", "微笑的脸"], ["sad, a hat", "悲伤，礼帽"]]
    figures = word_figures(["微笑的脸", "sad, a hat"], references)
    assert list(figures) == ["13a", "zh"]
    for own in figures.values():
        assert own["samples"] == own["references"] == own["rouge_l"] == 1
        assert own["cider_d"] is None  # of one sample
    assert "tok:zh" in figures["zh"]["signature"]
    assert kind_of("a face 脸") == "zh" and kind_of("") == "13a"


def test_a_caption_without_references_of_its_kind_is_wrong_not_left_out() -> None:
    figures = word_figures(["微笑的脸", ""], [["a face"], ["a face"]])
    assert figures["zh"]["rouge_l"] == figures["13a"]["rouge_l"] == 0
    assert figures["zh"]["bleu_1"] == figures["13a"]["bleu_1"] == 0


@pytest.mark.parametrize(("written", "references"), [(["a"], []), (["a"], [[]])])
def test_no_reference_is_an_error(written: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        word_figures(written, references)
    assert caught.value.hint


def test_without_the_library_the_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ImportError):
        word_figures(["a"], [["a"]])


@settings(max_examples=60, deadline=None)
@given(captions, st.lists(captions, min_size=1, max_size=3))
def test_rouge_is_a_share_symmetric_and_grows_with_references(
    written: Words, references: list[Words]
) -> None:
    value = rouge_l(written, references)
    assert 0 <= value <= 1
    assert value == max(rouge_l(reference, [written]) for reference in references)
    assert rouge_l(written, [*references, written]) == (1 if written else value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=2))
def test_cider_is_bounded_and_ignores_the_order_of_samples(
    samples: list[tuple[Words, list[Words]]],
) -> None:
    pairs = [
        Pairs(*zip(*((w, tuple(r)) for w, r in s), strict=True)) for s in (samples, samples[::-1])
    ]
    value = cider_d(pairs[0])
    assert -1e-9 <= value <= 10 + 1e-9
    assert cider_d(pairs[1]) == pytest.approx(value, abs=1e-9)
