"""The figures of the emoji experiment, on two small sets of drawings and a model without a clue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.cli.source import open_source
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
    emoji.main([str(run), "--data", str(known), "--unseen", str(other)])
    words = capsys.readouterr().out
    assert "3 concepts" in words and "1.00 times chance" in words and "2 pictures, 6 names" in words


def test_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no emoji data"):
        emoji.read(open_split(run / "data", "val"))
    known = write(tmp_path / "known", "flat", SPLITS)
    strange = write(tmp_path / "strange", "round", {"elk": "train"})
    with pytest.raises(ConfigError, match="has no concept of"):
        emoji.unseen_style(open_source(run, None), known, strange)
