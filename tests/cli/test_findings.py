"""Figures of known pictures and words: a judge that reads a face's number off its first pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from mmprod.cli import findings, scores
from mmprod.cli.findings import Findings, Request
from mmprod.cli.findings_views import percent
from mmprod.cli.output import Output
from mmprod.cli.scores import Sample
from mmprod.cli.source import Source
from mmprod.data.attributes import caption, sample_attributes, sample_held_out
from mmprod.evaluation.agreement import caption_agreement, stated
from mmprod.sampling import Pixels

RNG = np.random.default_rng(3)
FACES = [sample_attributes(RNG) for _ in range(6)] + [sample_held_out(RNG) for _ in range(4)]
PLAIN = {
    "hair_color": "black", "hair": "short", "hat": "none", "glasses": "none", "beard": "none",
    "expression": "sad", "clothes_color": "red", "background": "blue",
}  # fmt: skip
FACES.append(PLAIN)
KNOWN, UNSEEN = range(6), range(6, 10)


def pictures(numbers: Sequence[int]) -> Pixels:
    return np.stack([np.full((4, 4, 3), number, np.uint8) for number in numbers])


class Known:
    """The judge, and the features of the Frechet distance."""

    def predict(self, given: Pixels) -> list[dict[str, str]]:
        return [FACES[picture[0, 0, 0]] for picture in given]

    def features(self, given: Pixels) -> Any:
        first = given[:, 0, 0, 0].astype(np.float64)
        return np.stack([first, np.zeros_like(first)], axis=1)


def words(numbers: Sequence[int]) -> list[str]:
    return [caption(FACES[number], "en", 0) for number in numbers]


def sample(numbers: Sequence[int]) -> Sample:
    texts = words(numbers)
    return Sample(pictures(numbers), texts, [FACES[n] for n in numbers], [[text] for text in texts])


JUDGE = cast(Any, Known())
SOURCE = cast(Source, None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Request:
    """A model that draws what the captions say, and describes what shows."""
    number = {text: n for n, text in enumerate(words(range(len(FACES))))}
    monkeypatch.setattr(
        scores, "draw", lambda _, texts, seed: pictures([number[text] for text in texts])
    )
    monkeypatch.setattr(
        scores, "describe", lambda _, given, seed: words([int(p[0, 0, 0]) for p in given])
    )
    monkeypatch.setattr(scores, "draw_both", lambda *_: (pictures(KNOWN), words(KNOWN)))
    monkeypatch.setattr(scores, "train_judge", lambda *_: JUDGE)
    train = cast(Any, "a split of real pictures")
    return Request(sample(KNOWN), train, sample(UNSEEN), pictures([8, 9]), 0, None, 0)


def found_by(asked: Request, restored: Sequence[int] = KNOWN) -> dict[str, Any]:
    nothing = cast(Any, None)
    found = Findings(asked.held_out, pictures(restored), [], nothing, nothing)
    return findings._pictures(Output(verbosity=-1), SOURCE, asked, found)


def test_a_model_without_fault_gets_every_share(asked: Request) -> None:
    figures = found_by(asked)
    for own in (figures["faces"], figures["joint"], figures["judge"]):
        assert own["overall"] == own["exact"] == own["every_exact"] == 1
    assert figures["joint"]["complete"] == figures["joint"]["different"] == 1
    assert figures["joint"]["shifted"] < 0.9
    for way in ("faces", "captions", "judge"):
        assert figures["unseen"][way]["overall"] == figures["unseen"][way]["pairs"] == 1


def test_pictures_of_something_else_are_wrong_and_nothing_else_is(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "draw", lambda _, texts, seed: pictures([10] * len(texts)))
    figures = found_by(asked)
    assert figures["faces"]["exact"] < 1 and figures["judge"]["exact"] == 1
    assert figures["unseen"]["faces"]["pairs"] == 0
    assert figures["unseen"]["captions"]["pairs"] == figures["unseen"]["judge"]["pairs"] == 1


def test_captions_of_something_else_are_wrong_and_nothing_else_is(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "describe", lambda _, given, seed: [""] * len(given))
    unseen = found_by(asked)["unseen"]
    assert unseen["captions"]["overall"] == unseen["captions"]["pairs"] == 0
    assert unseen["faces"]["overall"] == unseen["judge"]["pairs"] == 1


def test_a_caption_without_words_agrees_with_no_face() -> None:
    """A plain face has no hat, glasses or beard, and an empty caption names none."""
    figures = findings._joint(JUDGE, pictures([10] * 4), [""] * 4)
    for name in ("overall", "exact", "every_attribute", "complete"):
        assert figures[name] == 0
    assert caption_agreement([PLAIN], ["xx yy"])["overall"] == 0
    assert stated("a hat") == {"hat": "hat", "hair_color": "hidden", "hair": "hidden"}
    assert stated(words([10])[0]) == PLAIN


def test_a_model_that_always_draws_the_same_is_found_out() -> None:
    figures = findings._joint(JUDGE, pictures([10] * 4), words([10] * 4))
    assert figures["overall"] == figures["shifted"] == 1
    assert figures["different"] == 0.25


def test_distances_are_from_other_real_pictures(asked: Request) -> None:
    """The numbers as features: mean 8.5 in the others, 2.5 in the held-out, 4 in the restored."""
    ((_, own),) = found_by(asked, restored=[4] * 6)["frechet"].items()
    spread, others = np.var(range(6), ddof=1), np.var([8, 9], ddof=1)
    near = 36 + (np.sqrt(spread) - np.sqrt(others)) ** 2
    assert own["real"] == own["generated"] == pytest.approx(near, rel=1e-3)
    assert own["reconstructed"] == pytest.approx(4.5**2 + others, rel=1e-3)


def test_no_distance_without_other_real_pictures(asked: Request) -> None:
    assert "two splits beside train" in found_by(replace(asked, others=None))["frechet"]
    alone = replace(asked, others=pictures([8]))
    assert found_by(alone)["frechet"] == "not run: one picture has no distribution"


def test_no_share_looks_like_more_than_it_is() -> None:
    shown = [percent(share) for share in (0.94996, 0.95, 0.0004, 0.29, 0.99999, 1, 0)]
    assert shown == ["94.99%", "95.00%", "0.04%", "29.00%", "99.99%", "100%", "0%"]
