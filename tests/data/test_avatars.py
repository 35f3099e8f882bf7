"""Generated faces: the same bytes everywhere, splits as promised, attributes that can be seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmprod.data import avatars, svg
from mmprod.data.attributes import (
    LANGUAGES,
    VARIANTS,
    is_held_out,
    parse_caption,
    sample_attributes,
)
from mmprod.data.store import data_fingerprint, open_split, verify_data
from mmprod.errors import ConfigError, EnvironmentMissing

FACE = {
    "hair_color": "red",
    "hair": "long",
    "hat": "none",
    "glasses": "none",
    "beard": "none",
    "expression": "smiling",
    "clothes_color": "black",
    "background": "blue",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("avatars") / "data"
    avatars.prepare_avatars(out, count=100, size=32, seed=5, workers=1)
    return out


def test_a_face_is_the_same_in_another_process() -> None:
    here = hashlib.sha256(avatars.draw(FACE, 7, 32).tobytes()).hexdigest()
    code = (
        "import hashlib, random; random.seed(99); from mmprod.data.avatars import draw\n"
        f"print(hashlib.sha256(draw({FACE!r}, 7, 32).tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here


def test_the_seed_changes_what_no_caption_states() -> None:
    assert (avatars.draw(FACE, 1, 32) != avatars.draw(FACE, 2, 32)).any()


def test_colours_are_seen() -> None:
    """The corner shows the background, the bottom edge the clothes, the crown the hair."""
    image = avatars.draw(FACE, 3, 64).astype(int)
    assert np.abs(image[1, 1] - avatars._BACKGROUNDS["blue"]).max() <= 1
    clothes = [int(avatars._CLOTHES_COLORS["black"][i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(image[62, 14] - clothes).max() <= 12
    red, green, blue = image[6, 32]
    assert red > 2 * green > green > blue


@pytest.mark.parametrize("name", ["hair_color", "hat", "glasses", "beard", "expression"])
def test_each_attribute_changes_the_picture(name: str) -> None:
    other = {"hair_color": "gray", "hat": "turban", "glasses": "glasses"}
    other |= {"beard": "moustache", "expression": "sad"}
    change = {name: other[name]}
    if name == "hat":
        change |= {"hair": "hidden", "hair_color": "hidden"}
    difference = avatars.draw(FACE | change, 3, 64).astype(int) - avatars.draw(FACE, 3, 64)
    assert (np.abs(difference).max(-1) > 40).sum() >= 8


def test_painting_without_masks_changes_nothing_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    faces = [sample_attributes(rng) for _ in range(25)]
    quick = [avatars.draw(face, i, 32).astype(int) for i, face in enumerate(faces)]
    monkeypatch.setattr(avatars, "_flatten", lambda body: body)
    for index, (face, image) in enumerate(zip(faces, quick, strict=True)):
        difference = np.abs(image - avatars.draw(face, index, 32))
        assert difference.max() <= 24
        assert difference.mean() < 0.3


def test_the_splits_are_as_promised(root: Path) -> None:
    counts = {name: split["count"] for name, split in verify_data(root)["splits"].items()}
    assert counts == {"train": 90, "val": 5, "test": 5, "test_combo": 5}
    for name, count in counts.items():
        faces = open_split(root, name).attributes(np.arange(count))
        assert {is_held_out(face) for face in faces} == {name == "test_combo"}


def test_captions_are_true(root: Path) -> None:
    split = open_split(root, "train")
    texts = list(split.all_captions(LANGUAGES))
    faces = split.attributes(np.arange(len(split)))
    each = len(LANGUAGES) * VARIANTS
    assert len(texts) == len(faces) * each
    for index, text in enumerate(texts):
        assert parse_caption(text) == faces[index // each]


def test_no_picture_is_in_two_splits(root: Path) -> None:
    pictures = []
    for name in ("train", "val", "test", "test_combo"):
        split = open_split(root, name)
        pictures += [image.tobytes() for image in split.images(np.arange(len(split)))]
    assert len(set(pictures)) == len(pictures)


def test_worker_processes_give_the_same_data_set(root: Path, tmp_path: Path) -> None:
    avatars.prepare_avatars(tmp_path / "two", count=100, size=32, seed=5, workers=2)
    assert data_fingerprint(tmp_path / "two") == data_fingerprint(root)


def test_fewer_templates_change_the_captions_alone(root: Path, tmp_path: Path) -> None:
    avatars.prepare_avatars(tmp_path / "one", count=100, size=32, seed=5, workers=1, variants=1)
    split, full = open_split(tmp_path / "one", "val"), open_split(root, "val")
    assert len(list(split.all_captions(LANGUAGES))) == len(LANGUAGES) * len(split)
    assert (split.images(np.arange(5)) == full.images(np.arange(5))).all()


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="templates"):
        avatars.prepare_avatars(tmp_path / "data", count=20, size=32, seed=0, variants=9)
    with pytest.raises(ConfigError):
        avatars.prepare_avatars(tmp_path / "data", count=5, size=32, seed=0)
    with pytest.raises(ConfigError):
        avatars.draw(FACE, 0, 4)
    with pytest.raises(ConfigError):
        avatars.draw(FACE | {"hair": "green"}, 0, 32)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    svg.resvg.cache_clear()
    with pytest.raises(EnvironmentMissing, match="resvg-py") as caught:
        avatars.prepare_avatars(tmp_path / "data", count=20, size=32, seed=0)
    assert "pip install" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
