"""Folders of pictures as users have them: layouts, captions, broken and hostile files."""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.data import pictures
from mmprod.data.folder import prepare_folder
from mmprod.data.store import Split, data_fingerprint, open_split, verify_data
from mmprod.errors import ConfigError


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def splits(root: Path) -> dict[str, Split]:
    return {name: open_split(root, name) for name in verify_data(root)["splits"]}


def keys(split: Split) -> list[str]:
    return split.keys(np.arange(len(split)))


def test_classes_give_captions_attributes_and_balance(tmp_path: Path) -> None:
    for index in range(30):
        picture(tmp_path / "in" / "red_apple" / f"{index}.png", index)
    for index in range(10):
        picture(tmp_path / "in" / "pear" / f"{index}.jpg", 100 + index)
    prepare_folder(tmp_path / "in", tmp_path / "out", size=16, seed=0, workers=2)
    found = splits(tmp_path / "out")
    assert {name: len(split) for name, split in found.items()} == {"train": 36, "val": 2, "test": 2}
    train = found["train"]
    kinds = [a["class"] for a in train.attributes(np.arange(36))]
    assert train.captions(np.arange(36), (), 0) == [kind.replace("_", " ") for kind in kinds]
    assert train.weights is not None
    share = [train.weights[[k == kind for k in kinds]].sum() for kind in ("pear", "red_apple")]
    assert share == pytest.approx([18, 18], rel=1e-5)
    everything = sorted(key for split in found.values() for key in keys(split))
    assert len(set(everything)) == 40


def test_one_subfolder_beside_loose_pictures_is_no_class(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "in" / "2024" / f"{index}.png", index)
    picture(tmp_path / "in" / "loose.png", 50)
    prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    train = splits(tmp_path / "out")["train"]
    assert train.weights is None
    assert {tuple(a) for a in train.attributes(np.arange(len(train)))} == {()}


def test_the_seed_decides_the_splits_and_threads_do_not(tmp_path: Path) -> None:
    for index in range(40):
        picture(tmp_path / "in" / f"{index}.png", index)
    for name, seed, workers in (("a", 0, 1), ("b", 0, 3), ("c", 1, 1)):
        prepare_folder(tmp_path / "in", tmp_path / name, size=8, seed=seed, workers=workers)
    assert data_fingerprint(tmp_path / "a") == data_fingerprint(tmp_path / "b")
    assert keys(splits(tmp_path / "a")["val"]) != keys(splits(tmp_path / "c")["val"])
    assert splits(tmp_path / "a")["train"].weights is None
    assert splits(tmp_path / "a")["train"].attributes(np.array([0])) == [{}]


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for index, split in enumerate(["train"] * 5 + ["validation"] * 2 + ["test"]):
        picture(tmp_path / "in" / split / "x" / f"{index}.png", index)
    prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    found = splits(tmp_path / "out")
    assert {name: len(split) for name, split in found.items()} == {"train": 5, "val": 2, "test": 1}
    assert keys(found["test"]) == ["test/x/7.png"]


def test_equal_pictures_stay_in_one_drawn_split(tmp_path: Path) -> None:
    for index in range(6):
        for copy in range(4):
            picture(tmp_path / "in" / f"{index}-{copy}.png", index)
    prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    found = splits(tmp_path / "out")
    homes = [{key.split("-")[0] for key in keys(split)} for split in found.values()]
    assert sum(map(len, homes)) == 6
    assert {name: len(split) for name, split in found.items()} == {"train": 16, "val": 4, "test": 4}


def test_captions_come_from_tables_then_text_files(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for index in range(4):
        picture(source / "sub" / f"{index}.png", index)
    picture(source / "other" / "9.png", 9)
    (source / "sub" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "first", "language": "en"}\n\n'
        '{"file_name": "0.png", "text": "第一", "language": "zh"}\n'
        '{"file_name": "gone.png", "text": "nothing"}\n'
    )
    (source / "metadata.csv").write_text(
        "file_name,caption\nsub/1.png,second\n", encoding="utf-8-sig"
    )
    (source / "sub" / "2.txt").write_text("third\n\nalso third\n")
    prepare_folder(source, tmp_path / "out", size=8, seed=0)
    texts: dict[str, set[str]] = {}
    for split in splits(tmp_path / "out").values():
        for index, key in enumerate(keys(split)):
            drawn = [split.captions(np.array([index]), ("en", "zh"), s)[0] for s in range(20)]
            texts[key] = set(drawn)
    assert texts == {
        "sub/0.png": {"first", "第一"},
        "sub/1.png": {"second"},
        "sub/2.png": {"third", "also third"},
        "sub/3.png": {"sub"},
        "other/9.png": {"other"},
    }
    skipped = verify_data(tmp_path / "out")["skipped"]
    assert [entry["file"] for entry in skipped] == ["sub/gone.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "name,text\n1.png,a\n", "row 2: no file_name"),
        ("metadata.jsonl", "[1]\n", "row 1: not an object"),
        ("metadata.jsonl", "{\n", "cannot be read"),
        ("metadata.csv", b"file_name,text\n\xff\xfe", "cannot be read"),
    ],
)
def test_malformed_tables_are_refused(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", index)
    (tmp_path / "in" / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(ConfigError, match=message) as caught:
        prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def bomb(side: int) -> bytes:
    """A valid PNG head that declares side x side pixels and holds none of them."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def test_broken_and_hostile_files_are_left_out_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in"
    for index in range(5):
        picture(source / f"{index}.png", index)
    outside = picture(tmp_path / "secret" / "s.png", 77)
    (source / "link.png").symlink_to(outside)
    (source / "linked").symlink_to(outside.parent)
    (source / "inside.png").symlink_to(source / "0.png")
    (source / "cut.png").write_bytes((source / "1.png").read_bytes()[:200])
    (source / "text.jpg").write_text("no picture")
    (source / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for side in (9_000, 12_000, 60_000):
        (source / f"bomb{side}.png").write_bytes(bomb(side))
    os.mkfifo(source / "pipe.png")
    (source / "notes.pdf").write_text("ignored")
    (source / ".hidden.png").write_text("ignored")
    with caplog.at_level(logging.WARNING):
        prepare_folder(source, tmp_path / "out", size=8, seed=0)
    reasons = {entry["file"]: entry["reason"] for entry in verify_data(tmp_path / "out")["skipped"]}
    expected = {
        "link.png": "leaves",
        "linked": "not followed",
        "cut.png": "decoded",
        "text.jpg": "decoded",
        "script.png": "decoded",
        "bomb9000.png": "pixels",
        "bomb12000.png": "pixels",
        "bomb60000.png": "pixels",
        "pipe.png": "regular",
    }
    assert set(reasons) == set(expected)
    assert all(expected[name] in reason for name, reason in reasons.items())
    assert len(caplog.records) == len(expected)
    found = sorted(key for split in splits(tmp_path / "out").values() for key in keys(split))
    assert found == ["0.png", "1.png", "2.png", "3.png", "4.png", "inside.png"]


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_pictures_are_refused(count: int, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(count):
        picture(tmp_path / "in" / f"{index}.png", index)
    with pytest.raises(ConfigError, match=f"{count} different") as caught:
        prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    assert ".png" in caught.value.hint
    with pytest.raises(ConfigError, match="not a folder"):
        prepare_folder(tmp_path / "nowhere", tmp_path / "out", size=8, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pictures_are_turned_flattened_and_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :6] = (255, 0, 0)
    image = Image.fromarray(pixels)
    assert pictures.square(image, 8).max() < 8  # the red edge lies outside the centre
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(pixels[:, :20]).save(tmp_path / "turned.png", exif=exif)
    turned = pictures.read_picture(tmp_path / "turned.png", 10)
    assert turned[1, 5].tolist() == [255, 0, 0]
    assert turned[8, 5].tolist() == [0, 0, 0]
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[4:12, 4:12] = (0, 0, 255, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    flat = pictures.read_picture(tmp_path / "clear.png", 16)
    assert flat[0, 0].tolist() == [255, 255, 255]
    assert flat[8, 8].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK", "RGB", "RGBA"])
def test_every_usual_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((12, 12), 0x8000, np.uint16))
    else:
        image = Image.new("L", (12, 12), 128).convert("RGB").convert(mode, dither=Image.Dither.NONE)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    result = pictures.read_picture(path, 12)
    assert result.shape == (12, 12, 3)
    assert result.dtype == np.uint8
    off = {"1": 128, "P": 32}.get(mode, 1)  # black and white, and the web palette, are coarse
    assert np.abs(result.astype(int) - 128).max() <= off


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", index)
    prepare_folder(tmp_path / "in", tmp_path / "out", size=8, seed=0)
    manifest = json.loads((tmp_path / "out" / "data.json").read_text())
    assert manifest["source"] == "folder"
    assert manifest["skipped"] == []
    assert set(manifest["generator"]) == {"pillow", "numpy"}
