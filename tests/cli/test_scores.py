"""What a model makes of held-out samples, and the command that scores it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprod.cli import scores
from mmprod.cli.source import open_source
from mmprod.data.attributes import caption
from mmprod.data.store import open_split
from mmprod.data.writer import Caption, DataInfo, DataWriter
from mmprod.data.writer import Sample as Written
from mmprod.evaluation.agreement import caption_agreement, chance
from mmprod.evaluation.words import kind_of

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


def test_inpainting_keeps_every_code_outside_the_hole(run: Path) -> None:
    source = open_source(run, None)
    held_out = scores.sample(open_split(run / "data", "train"), 7, ("en",))
    codes, tokens = scores.encode(source, held_out)
    found = scores.inpaint(source, held_out, codes, tokens, 0)
    assert found.kept == 1
    assert 0.3 < found.redrawn < 0.6
    grey = (found.holes == scores.GREY).all(-1)
    assert grey[0, :, :8].all() and grey[1, 8:].all() and grey[4, 7:9, 7:9].all()
    np.testing.assert_array_equal(found.holes[0, :, 8:], held_out.pictures[0, :, 8:])
    others = (codes + 1) % source.dims.codebook_size
    assert scores.inpaint(source, held_out, others, tokens, 0).kept == 0


def test_the_sample_has_all_references_of_each_picture(run: Path) -> None:
    sample = scores.sample(open_split(run / "data", "train"), 3, ("en",))
    for asked, references in zip(sample.captions, sample.references, strict=True):
        assert asked in references
        assert {kind_of(text) for text in references} == {"13a", "zh"}


def test_eval_reports_every_figure(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "JUDGE_STEPS", 2)
    data = mmprod("eval", run, "--count", 2, "--json", "--out", tmp_path / "out").json()
    assert data["samples"] == 2
    assert 0 < data["psnr"] < 100
    assert -1 <= data["ssim"] < 1
    assert 0 <= data["ms_ssim"] < 1
    for shares in (data["captions"], data["faces"], data["judge"], data["joint"]):
        assert all(0 <= shares[name] <= 1 for name in ("overall", "exact", "every_exact"))
    assert data["unseen"]["samples"] == 2
    assert 0 <= data["unseen"]["faces"]["pairs"] <= 1
    assert sum(own["samples"] for own in data["words"].values()) == 2
    assert data["inpainting"]["kept"] == 1
    ((name, distances),) = data["frechet"].items()
    assert name.startswith("Frechet distance [features: attribute judge of this data set, 2 steps")
    assert set(distances) == {"generated", "reconstructed", "real"}
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
    _check_report(tmp_path / "out", data)
    words = mmprod("eval", run, "--count", 2, "--no-faces").out
    assert "not asked for" in words
    assert "overall right" in words
    assert "R@1" in words
    assert "bits" in words
    assert "bound" not in mmprod("eval", run, "--count", 2, "--no-faces", "--draws", 0).out


def _check_report(folder: Path, data: dict[str, Any]) -> None:
    """The page shows every figure and both samples of everything; the JSON is the document."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    for title in ("Pictures for captions", "Drawn together", "Inpainting", "Search by words 2"):
        assert f"<h2>{title}</h2>" in page
    for name, value in (("PSNR", f"{data['psnr']:.2f} dB"), ("codes kept", "100%")):
        assert name in page and value in page
    assert page.count("the right one") >= 4
    assert page.count("<img") == 2 * (2 + 1 + 1 + 1 + 2 + 2 + 1)
    saved = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert saved.pop("kind") == "evaluation" and saved.pop("format") == 1
    written = saved.pop("captions_written")
    assert [set(row) for row in written] == 2 * [{"asked", "written", "references"}]
    assert saved == {name: value for name, value in data.items() if name != "files"}


def test_eval_in_chinese_asks_with_chinese_captions(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    options = ("--count", 2, "--no-faces", "--draws", 0, "--language", "zh", "--out", tmp_path)
    assert mmprod("eval", run, *options).code == 0
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved["languages"] == ["zh"]
    assert {kind_of(row["asked"]) for row in saved["captions_written"]} == {"zh"}


def test_eval_refuses_before_it_works(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    result = mmprod("eval", run, "--out", file)
    assert result.code == 2 and "is a file, not a folder" in result.err
    result = mmprod("eval", run, "--features", file, "--no-faces")
    assert result.code == 2 and "--no-faces draws none" in result.err
    result = mmprod("eval", run, "--count", 1, "--features", file, "--out", tmp_path / "out")
    assert result.code == 4 and str(file) in result.err
    assert not (tmp_path / "out").exists()
    assert mmprod("eval", run, "--language", "fr").code == 2


def test_eval_needs_sacrebleu_before_it_works(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    monkeypatch.delattr(scores, "encode")  # what comes first of the work
    result = mmprod("eval", run, "--count", 2, "--out", tmp_path / "out")
    assert result.code == 3 and "mmprod[data]" in result.err
    assert not (tmp_path / "out").exists()


def test_eval_without_pictures_needs_no_training_split(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with DataWriter(data, DataInfo("avatars", 16, 0, {})) as writer:
        opened = open_split(run / "data", "test")
        for i, picture in enumerate(opened.images(np.arange(2))):
            writer.add("test", Written(f"{i}", picture, (Caption("en", "a face"),), {}))
    options = ("--language", "en", "--no-faces", "--draws", 0)
    result = mmprod("eval", run, "--data", data, *options)
    assert result.code == 0, result.err


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
    command = ("eval", run, "--data", prepared, "--split", "train", "--count", 3, "--draws", 0)
    data = mmprod(*command, "--json", "--out", tmp_path / "out").json()
    assert data["psnr"] > 0
    assert data["captions"] == data["faces"] == "not run: the data set has no attributes"
    assert data["frechet"] == "not run: no features were given (--features)"
    assert data["words"]["13a"]["references"] == 1
    assert "Drawn together" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
