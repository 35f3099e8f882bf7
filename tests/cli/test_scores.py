"""What a model makes of held-out samples, and the command that scores it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.cli import scores
from mmprod.cli.source import open_source
from mmprod.data.attributes import caption
from mmprod.data.store import open_split
from mmprod.evaluation.agreement import caption_agreement, chance

from .conftest import Mmprod


def test_right_captions_agree_and_others_less(run: Path) -> None:
    sample = scores.sample(open_split(run / "data", "train"), 30, ("en",))
    assert sample.scorable
    right = [caption(attributes, "en", 1) for attributes in sample.attributes]
    assert caption_agreement(sample.attributes, right)["overall"] == 1
    assert caption_agreement(sample.attributes, sample.captions)["overall"] == 1
    shifted = [*right[1:], *right[:1]]
    assert caption_agreement(sample.attributes, shifted)["overall"] < 0.9
    assert chance(sample.attributes)["overall"] < 0.9


def test_reconstruction_keeps_order_over_batches(run: Path) -> None:
    source = open_source(run, None)
    pictures = open_split(run / "data", "train").images(np.arange(20))
    restored = scores.reconstruct(source, pictures)
    assert restored.shape == pictures.shape
    np.testing.assert_array_equal(restored[17:18], scores.reconstruct(source, pictures[17:18]))


def test_eval_reports_every_figure(
    mmprod: Mmprod, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "JUDGE_STEPS", 2)
    data = mmprod("eval", run, "--count", 2, "--json").json()
    assert data["samples"] == 2
    assert 0 < data["psnr"] < 100
    assert -1 <= data["ssim"] < 1
    assert 0 <= data["ms_ssim"] < 1
    for name in ("captions", "faces"):
        assert 0 <= data[name]["overall"] <= 1
    for way in ("text_to_image", "image_to_text"):
        found = data["search"][way]
        assert found["chance"] in (0.5, 1.0)
        assert found["R@5"] == found["R@10"] == 1  # of two
    bits = data["likelihood"]
    assert bits["samples"] == 2
    assert 0 < bits["image"]["bits_per_code"] < 8
    assert bits["text_given_image"]["bits"] > 0
    gain = bits["image"]["bits"] - bits["image_given_text"]["bits"]
    assert bits["information_from_images"]["bits"] == pytest.approx(gain)
    words = mmprod("eval", run, "--count", 2, "--no-faces").out
    assert "overall right" in words
    assert "R@1" in words
    assert "bits" in words
    assert "bound" not in mmprod("eval", run, "--count", 2, "--no-faces", "--draws", 0).out


def test_eval_of_a_split_that_is_not_there(mmprod: Mmprod, run: Path) -> None:
    result = mmprod("eval", run, "--split", "tset")
    assert result.code == 2
    assert "test_combo" in result.err


def test_eval_of_pictures_without_known_attributes(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(24):
        noise = np.random.default_rng(index).integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"picture {index}", encoding="utf-8")
    prepared = tmp_path / "data"
    made = mmprod("data", "prepare", "folder", pictures, "--out", prepared, "--size", 16, "--json")
    assert made.code == 0, made.err
    data = mmprod("eval", run, "--data", prepared, "--split", "train", "--json").json()
    assert data["psnr"] > 0
    assert data["captions"] == data["faces"] == "not run: the data set has no attributes"
