"""`mmprod generate`, `mmprod caption` and `mmprod data` on a run; pictures of all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.cli.use import GAP

from .conftest import Mmprod


def test_generate_writes_a_grid_that_depends_on_the_seed(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    def grid(seed: int, name: str) -> np.ndarray:
        path = tmp_path / name
        result = mmprod(
            "generate", run, "red hair", "a hat", "-n", 3, "--seed", seed, "--out", path, "--json"
        )
        assert result.json()["pictures"] == 6
        assert result.json()["backend"].startswith("torch")
        return np.asarray(Image.open(path))

    first = grid(1, "a.png")
    assert first.shape == (2 * (128 + GAP) + GAP, 3 * (128 + GAP) + GAP, 3)
    np.testing.assert_array_equal(first, grid(1, "b.png"))
    assert not np.array_equal(first, grid(2, "c.png"))


def test_caption_answers_for_every_picture(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path, size in zip(paths, ((40, 30), (16, 16)), strict=True):
        Image.new("RGB", size, "orange").save(path)
    found = mmprod("caption", run, *paths, "--json").json()["captions"]
    assert [entry["image"] for entry in found] == [str(path) for path in paths]
    assert all(isinstance(entry["caption"], str) for entry in found)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--backend", "ort"], "mmprod export"),
        (["--backend", "nonsense"], ""),
    ],
)
def test_backend_that_does_not_fit_is_refused(
    arguments: list[str], hint: str, mmprod: Mmprod, run: Path
) -> None:
    result = mmprod("generate", run, "x", *arguments)
    assert result.code == 2
    assert hint in result.err


def test_folder_that_holds_no_model(mmprod: Mmprod, tmp_path: Path) -> None:
    result = mmprod("generate", tmp_path, "x")
    assert result.code == 2
    assert "neither a finished run nor a bundle" in result.err
    assert "does not exist" in mmprod("generate", tmp_path / "nowhere", "x").err


def test_damaged_run_is_exit_4(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "codec" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = mmprod("generate", copy, "x")
    assert result.code == 4
    assert "model.safetensors" in result.err


def test_places_where_no_picture_can_go_are_refused_before_the_work(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")

    def opened(*arguments: object) -> None:
        pytest.fail("the model was opened first")

    monkeypatch.setattr("mmprod.cli.use.open_source", opened)
    for place in ("/proc/nope/x.png", tmp_path, tmp_path / "file" / "x.png"):
        result = mmprod("generate", run, "x", "--out", place, "--json")
        assert result.code == 2, place
        assert result.json()["error"]["hint"]


def test_file_that_is_no_picture(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("not a picture", encoding="utf-8")
    for name in ("x.png", "absent.png"):
        result = mmprod("caption", run, tmp_path / name)
        assert result.code == 2
        assert f"{name} is of no use" in result.err


def test_data_is_described_and_checked(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    stats = mmprod("data", "stats", run / "data", "--json").json()
    assert stats["splits"] == {"train": 36, "val": 2, "test": 2, "test_combo": 2}
    assert sum(stats["attributes"]["glasses"].values()) == pytest.approx(1)
    assert stats["example"]
    assert mmprod("data", "verify", run / "data").code == 0
    assert mmprod("data", "verify", tmp_path).code == 4


def test_prepare_avatars_twice_gives_the_same_data(mmprod: Mmprod, tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        arguments = (
            "--count",
            20,
            "--size",
            16,
            "--workers",
            1,
            "--out",
            tmp_path / name,
            "--json",
        )
        return str(mmprod("data", "prepare", "avatars", *arguments).json()["fingerprint"])

    assert fingerprint("a") == fingerprint("b")
    assert mmprod("data", "prepare", "avatars", "--out", tmp_path / "a").code == 2
