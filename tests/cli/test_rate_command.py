"""`mmprod codec rate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Mmprod
from .test_compress import bundle  # noqa: F401 (a fixture)

PICTURES = "--pictures"


def test_rate_compares_real_files_with_classic_codecs(
    run: Path, mmprod: Mmprod, tmp_path: Path
) -> None:
    data = mmprod("codec", "rate", run, "--data", run / "data", "--split", "train", "--count", 2,
                  "--qualities", "0,40,90", "--priors", "raw,static", "--out", tmp_path,
                  "--json").json()  # fmt: skip
    ours = {point["setting"]: point for point in data["ours"]}
    assert set(ours) == {"raw", "static"}
    assert 8 < ours["raw"]["bytes"] < 40
    assert ours["raw"]["psnr"] == ours["static"]["psnr"]
    assert set(data["theirs"]) == {"JPEG", "WebP", "AVIF"}
    assert {"q0 4:2:0", "lossless"} <= {point["setting"] for point in data["theirs"]["WebP"]}
    assert len(data["comparisons"]) == 2 * 3
    assert all("smallest" in comparison["words"] for comparison in data["comparisons"])
    label = "f4 16 spherical"
    assert data["codecs"] == [
        {"codec": label, "path": str(run), "kind": "run", "precision": "fp32", "factor": 4,
         "quantizer": "spherical", "books": 1, "codes": 16, "dim": 4, "priors": ["raw", "static"]}
    ]  # fmt: skip
    assert {point["codec"] for point in data["ours"]} == {label}
    smallest = min(data["ours"], key=lambda point: point["bytes"])
    for level in data["bytes_at_psnr"]:
        assert level["ours"]["bytes"] == smallest["bytes"]
        assert level["ours"]["setting"] == smallest["setting"]
    sizes = {decoder["codec"]: decoder["bytes"] for decoder in data["decoders"]}
    assert sizes[label] > 1000
    page = (tmp_path / "rate.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    written = json.loads((tmp_path / "rate.json").read_text("utf-8"))
    assert {**written, "files": data["files"]} == data
    assert "| f4 16 spherical | raw |" in (tmp_path / "rate.md").read_text("utf-8")


@pytest.mark.slow  # exports a bundle
def test_rate_of_a_bundle_beside_its_run(
    run: Path,
    bundle: Path,  # noqa: F811
    mmprod: Mmprod,
    tmp_path: Path,
) -> None:
    data = mmprod("codec", "rate", run, bundle, "--data", run / "data", "--split", "train",
                  "--count", 2, "--qualities", "50", "--against", "webp", "--out", tmp_path,
                  "--json").json()  # fmt: skip
    settings = [(point["codec"], point["setting"]) for point in data["ours"]]
    names = ["f4 16 spherical", "f4 16"]  # this bundle holds no configuration
    assert settings == [(name, prior) for name in names for prior in ("raw", "static", "fusion")]
    by_name = {name: [p["bytes"] for p in data["ours"] if p["codec"] == name] for name in names}
    assert by_name[names[0]][:2] == pytest.approx(by_name[names[1]][:2], abs=2)
    sizes = {decoder["codec"]: decoder for decoder in data["decoders"]}
    assert "code_prior in fp32" in sizes[names[1]]["what"]
    assert "fusion model" in sizes[names[0]]["what"]
    files = ("codec_decode.fp32.onnx", "code_prior.fp32.onnx")
    assert sizes[names[1]]["bytes"] == sum((bundle / "onnx" / f).stat().st_size for f in files)


@pytest.mark.slow  # exports a bundle
def test_rate_refuses_a_precision_before_it_measures(
    run: Path,
    bundle: Path,  # noqa: F811
    mmprod: Mmprod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmprod.cli.rate.measure_ours", None)
    arguments = ("--data", run / "data", "--split", "train", "--precision", "fp16")
    for codec, words in ((bundle, "has no codec_encode in fp16"), (run, "a run computes in fp32")):
        result = mmprod("codec", "rate", codec, *arguments, "--out", tmp_path / "out")
        assert result.code == 2
        assert words in result.err


def test_rate_on_own_pictures_of_another_size(run: Path, mmprod: Mmprod, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(pictures / "a.png")
    (pictures / "b.png").write_bytes(b"no picture")
    result = mmprod("codec", "rate", run, PICTURES, pictures, "--size", 24, "--qualities", "50",
                    "--against", "jpeg", "--priors", "static",
                    "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    assert "b.png is left out" in result.err
    assert "JPEG" in result.out
    assert "What a decoder takes" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --data or --pictures"),
        ((PICTURES, "nowhere"), "is no folder"),
        ((PICTURES, ".", "--against", "jxl"), "no codec 'jxl'"),
        ((PICTURES, ".", "--qualities", "101"), "no quality"),
        ((PICTURES, ".", "--priors", "best"), "no prior best"),
        ((PICTURES, "tests/golden"), "holds no picture"),
        ((PICTURES, ".", "--lpips-heads", "x.pth"), "--lpips-heads needs --lpips"),
        (("--data", ".", "--size", "32"), "--size is for --pictures"),
        ((PICTURES, ".", "--precision", "fp16"), "a run computes in fp32"),
    ],
)
def test_rate_refuses_what_it_cannot_do(
    run: Path, mmprod: Mmprod, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = mmprod("codec", "rate", run, *arguments, "--count", 1, "--out", tmp_path)
    assert result.code == 2
    assert words in result.err


def test_rate_needs_every_codec_once(run: Path, mmprod: Mmprod, tmp_path: Path) -> None:
    result = mmprod("codec", "rate", run, run, PICTURES, ".", "--out", tmp_path)
    assert result.code == 2
    assert "given twice" in result.err
