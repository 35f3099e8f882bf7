"""The figures of the emoji experiment, on two small sets of drawings and a model without a clue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.cli.source import Source, open_source
from mmprod.data.store import open_split
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError
from tools import emoji


def write(out: Path, style: str, split_of: dict[str, str], tones: bool = False) -> Path:
    """A drawing of each concept, whose name is that of the concept, and one with a skin tone."""
    rng = np.random.default_rng(len(style))
    with DataWriter(out, DataInfo("emoji", 16, 0, {})) as writer:
        for concept, split in split_of.items():
            for tone in ("", "dark")[: 1 + tones]:
                image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                captions = tuple(
                    Caption("en", text) for text in (f"the {concept}", f"the {concept}, {style}")
                )
                about = {"style": style, "concept": concept}
                about |= {"skin_tone": tone} if tone else {}
                writer.add(split, Sample(f"{style}/{concept}{tone}", image, captions, about))
    return out


SPLITS = {"cat": "train", "dog": "train", "owl": "val", "bee": "val", "ant": "val", "fox": "test"}


def test_both_figures_are_over_what_training_never_saw(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = write(tmp_path / "known", "flat", SPLITS, tones=True)
    other = write(tmp_path / "other", "round", SPLITS)
    found = emoji.read(open_split(known, "val"))
    assert sorted(found.names) == ["the ant", "the bee", "the owl"]  # labels, no skin tones
    source = open_source(run, None)
    ((style, count, guess, recalls),) = emoji.unseen_concepts(source, known, "val")
    assert (style, count, guess) == ("flat", 3, 1.0)
    assert recalls["R@10"] == 1 and 0 <= recalls["R@1"] <= 1
    pictures, names, recalls = emoji.unseen_style(source, known, other)
    assert (pictures, names) == (2, 6)  # of concepts that were in train, among all names
    assert recalls["R@10"] == 1
    assert emoji.main([str(run), "--data", str(known), "--unseen", str(other)]) == 0
    words = capsys.readouterr().out
    assert "3 concepts" in words and "1.00 times chance" in words and "2 pictures, 6 names" in words


Made = tuple[np.ndarray, np.ndarray]


def one_hot(
    monkeypatch: pytest.MonkeyPatch, source: Source, pictures: list[str], names: list[str]
) -> None:
    """Embeddings of pictures and of names, each pointing where its text here is among `names`."""
    unit = np.eye(len(set(names)), dtype=np.float32)
    texts = source.tokenizer.encode(names, source.dims.text_length)

    def embed(_: object, codes: np.ndarray, tokens: np.ndarray) -> Made:
        assert len(codes) == len(pictures)
        found = [int(np.flatnonzero((texts == row).all(1))[0]) for row in tokens]
        return unit[[names.index(text) for text in pictures]], unit[found]

    monkeypatch.setattr(emoji, "embed", embed)


def test_each_name_finds_its_own_picture(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = write(tmp_path / "known", "flat", SPLITS)
    source = open_source(run, None)
    names = emoji.read(open_split(known, "val")).names
    one_hot(monkeypatch, source, names, names)
    ((_, _, _, found),) = emoji.unseen_concepts(source, known, "val")
    assert found["R@1"] == 1
    one_hot(monkeypatch, source, [names[1], names[0], names[2]], names)
    ((_, _, _, found),) = emoji.unseen_concepts(source, known, "val")
    assert found["R@1"] == pytest.approx(1 / 3)


def test_each_picture_of_a_new_style_finds_its_own_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = write(tmp_path / "known", "flat", SPLITS)
    other = write(tmp_path / "other", "round", SPLITS)
    source = open_source(run, None)
    names = [f"the {concept}" for concept in SPLITS]
    asked = emoji.read(open_split(other, "train")).names
    one_hot(monkeypatch, source, asked, names)
    assert emoji.unseen_style(source, known, other)[2]["R@1"] == 1
    one_hot(monkeypatch, source, [asked[0], "the owl"], names)
    assert emoji.unseen_style(source, known, other)[2]["R@1"] == 0.5


def test_a_path_that_is_not_there_is_an_error_in_words(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert emoji.main([str(run), "--data", str(tmp_path), "--unseen", str(tmp_path)]) > 1
    assert "hint: " in capsys.readouterr().err


def test_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no emoji data"):
        emoji.read(open_split(run / "data", "val"))
    known = write(tmp_path / "known", "flat", SPLITS)
    strange = write(tmp_path / "strange", "round", {"elk": "train"})
    with pytest.raises(ConfigError, match="has no concept of"):
        emoji.unseen_style(open_source(run, None), known, strange)
