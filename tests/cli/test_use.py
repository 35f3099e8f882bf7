"""`mmprod generate`, `mmprod caption` and `mmprod data` on a run; pictures of all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.cli.sheet import GAP
from mmprod.cli.use import tidied
from mmprod.data.writer import DataInfo, DataWriter, Sample

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


def test_single_files_hold_what_the_grid_shows(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    grid, folder = tmp_path / "grid.png", tmp_path / "single"
    arguments = ("generate", run, "a hat", "-n", 3, "--out", grid, "--separate", folder, "--json")
    files = mmprod(*arguments).json()["files"]
    assert files == [str(folder / f"{index}.png") for index in range(3)]
    sheet = np.asarray(Image.open(grid))
    for index, file in enumerate(files):
        x = GAP + index * (128 + GAP)
        shown = sheet[GAP : GAP + 128 : 8, x : x + 128 : 8]
        np.testing.assert_array_equal(np.asarray(Image.open(file)), shown)


@pytest.mark.parametrize("option", ["--denoise", "--sharpen"])
def test_finishing_touches_are_off_unless_asked_for(
    option: str, mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    plain, touched = tmp_path / "plain.png", tmp_path / "touched.png"
    mmprod("generate", run, "a hat", "-n", 1, "--out", plain)
    mmprod("generate", run, "a hat", "-n", 1, "--out", touched, option)
    assert not np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(touched)))


def test_joint_and_unconditional_need_no_caption(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    arguments = ("-n", 18, "--out", tmp_path / "x.png", "--json")
    both = mmprod("generate", run, "--joint", *arguments).json()
    assert both["pictures"] == 18 and len(both["captions"]) == 18
    alone = mmprod("generate", run, "--unconditional", *arguments).json()
    assert alone["pictures"] == 18 and alone["captions"] == []


@pytest.mark.parametrize("judge", ["likelihood", "similarity"])
def test_the_best_is_one_of_the_candidates(
    judge: str, mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    def files(*arguments: object) -> list[bytes]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        common = ("--separate", folder, "--out", tmp_path / "grid.png", "--json")
        found = mmprod("generate", run, "a hat", *arguments, *common).json()["files"]
        return [Path(file).read_bytes() for file in found]

    candidates = files("-n", 6)
    best = files("-n", 2, "--best-of", 3, "--by", judge)
    assert len(best) == 2
    assert best[0] in candidates[:3] and best[1] in candidates[3:]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--joint"],
        ["x", "--unconditional"],
        ["--joint", "--unconditional"],
        ["--unconditional", "--best-of", 2, "--by", "similarity"],
    ],
)
def test_requests_that_contradict_themselves(
    arguments: list[str], mmprod: Mmprod, run: Path
) -> None:
    result = mmprod("generate", run, *arguments, "--json")
    assert result.code == 2
    assert result.json()["error"]["hint"]


@pytest.mark.parametrize("option", [("--steps", 5), ("--guidance", 9), ("--temperature", 0.1)])
def test_samplers_of_a_run_can_be_changed(
    option: tuple[str, float], mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    plain, changed = tmp_path / "plain.png", tmp_path / "changed.png"
    assert mmprod("generate", run, "a hat", "--out", plain).code == 0
    assert mmprod("generate", run, "a hat", *option, "--out", changed).code == 0
    same = np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(changed)))
    assert not same


@pytest.mark.parametrize("option", [("--steps", 0), ("--steps", 17), ("--temperature", 0)])
def test_impossible_samplers_are_refused(
    option: tuple[str, float], mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    result = mmprod("generate", run, "x", *option, "--out", tmp_path / "x.png", "--json")
    assert result.code == 2
    assert "sampler" in result.json()["error"]["message"]


def test_tidy_captions() -> None:
    assert tidied("  a  face with\nred hair ") == "A face with red hair"
    assert tidied("") == ""


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


def test_stats_see_the_whole_of_a_split_that_is_in_order(
    mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprod.cli.data.STATS_SAMPLES", 40)
    with DataWriter(tmp_path / "data", DataInfo("emoji", 4, 0, {})) as writer:
        for index in range(400):
            about = {"style": "flat" if index < 200 else "round", "concept": f"c{index}"}
            writer.add("train", Sample(str(index), np.zeros((4, 4, 3), np.uint8), (), about))
    stats = mmprod("data", "stats", tmp_path / "data", "--json").json()
    assert stats["attributes"]["style"] == {"flat": 0.5, "round": 0.5}
    assert len(stats["attributes"]["concept"]) == 40
    words = mmprod("data", "stats", tmp_path / "data").out
    assert "and 28 more" in " ".join(words.split())


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
