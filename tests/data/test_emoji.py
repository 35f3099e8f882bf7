"""Emoji pairs from a small made-up set of packages: no npm, no network."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprod.data import emoji_packages
from mmprod.data.emoji import prepare_emoji
from mmprod.data.emoji_packages import NAMES, STYLES, fetch_packages, folder_of, read_names
from mmprod.data.store import data_fingerprint, open_split, verify_data
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError

PLAIN = [f"1F34{digit:X}" for digit in range(16)]
WAVE = "1F44B"
TWINS = ("1F1F3-1F1F4", "1F1E7-1F1FB")
WORKER = ("1F9D1-200D-1F33E", "1F468-200D-1F33E", "1F469-200D-1F33E")


def entry(code: str, group: int, **more: Any) -> dict[str, Any]:
    return {"hexcode": code, "label": f"thing {code}", "tags": ["a", "b"], "group": group, **more}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def body(color: str) -> str:
    return f'<circle cx="16" cy="16" r="12" fill="{color}"/>'


def color(code: str) -> str:
    """A colour of its own for each drawing; the twin flags look the same."""
    number = sum(ord(letter) * 31**place for place, letter in enumerate(code)) % 0xFFFFFF
    return "#123456" if code in TWINS else f"#{number:06x}"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    tones = [f"{WAVE}-1F3F{t}" for t in "BCDEF"]
    skins = [
        {"hexcode": code, "label": f"waving hand: tone {t}", "group": 1, "tone": t}
        for t, code in enumerate(tones, 1)
    ]
    entries = [entry(code, 4) for code in PLAIN]
    entries += [entry(WAVE, 1, label="waving hand", skins=skins)]
    entries += [entry(code, 9) for code in TWINS]
    entries += [entry(code, 1) for code in WORKER]
    entries += [entry("1F3FB", 2), {"hexcode": "1F1E6", "label": "regional indicator A"}]
    names = root / folder_of(NAMES) / "package"
    write(names / "en" / "data.json", entries)
    write(names / "zh" / "data.json", [e | {"label": f"东西{e['hexcode']}"} for e in entries])
    groups = {"1": "people-body", "2": "component", "4": "food-drink", "9": "flags"}
    write(names / "meta" / "groups.json", {"groups": groups})

    drawn = [*PLAIN, WAVE, *tones, *TWINS, *WORKER, "1F3FB", "FFFFF"]
    icons = {f"icon-{code}": {"body": body(color(code))} for code in drawn}
    noto = root / folder_of(STYLES["noto"].package) / "package"
    aliases = {"first": {"parent": f"icon-{PLAIN[0]}"}}
    write(noto / "icons.json", {"icons": icons, "aliases": aliases, "width": 32, "height": 32})
    chars = {code.lower(): f"icon-{code}" for code in drawn} | {PLAIN[0].lower(): "first"}
    write(noto / "chars.json", chars)

    assets = root / folder_of(STYLES["fluent-3d"].package) / "package" / "assets"
    assets.mkdir(parents=True)
    for code in PLAIN[:8]:
        picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        picture.paste(color(code), (5, 5, 35, 35))
        picture.save(assets / f"{code.lower()}-fe0f.webp", lossless=True)
    return root


@pytest.fixture(scope="module")
def root(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji") / "data"
    prepare_emoji(out, size=16, seed=0, styles=("noto", "fluent-3d"), packages=packages, workers=1)
    return out


def rows(root: Path) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Split -> (key, attributes) of every sample."""
    found = {}
    for name in verify_data(root)["splits"]:
        split = open_split(root, name)
        everything = np.arange(len(split))
        found[name] = list(zip(split.keys(everything), split.attributes(everything), strict=True))
    return found


def test_no_concept_is_in_two_splits_and_nothing_is_lost(root: Path) -> None:
    found = rows(root)
    concepts = {name: {about["concept"] for _, about in split} for name, split in found.items()}
    assert set(concepts) == {"train", "val", "test"}
    assert sum(map(len, concepts.values())) == len(set().union(*concepts.values())) == 19
    keys = [key for split in found.values() for key, _ in split]
    held = {key for name in ("val", "test") for key, _ in found[name]}
    lost = 5 if f"noto/{WAVE.lower()}" in held else 0
    assert len(set(keys)) == len(keys) == 16 + 6 + 2 + 3 + 8 - lost


def test_skin_tone_gender_and_equal_pictures_do_not_make_a_concept(root: Path) -> None:
    by_key = {key: about["concept"] for split in rows(root).values() for key, about in split}
    assert len({by_key[f"noto/{code.lower()}"] for code in WORKER}) == 1
    assert len({by_key[f"noto/{code.lower()}"] for code in TWINS}) == 1
    assert by_key[f"noto/{PLAIN[0].lower()}"] == by_key[f"fluent-3d/{PLAIN[0].lower()}"]


def test_held_out_splits_show_no_skin_tone_whatever_the_seed(
    packages: Path, tmp_path: Path
) -> None:
    seen = 0
    for seed in range(12):
        out = tmp_path / str(seed)
        prepare_emoji(out, size=8, seed=seed, styles=("noto",), packages=packages, workers=1)
        found = rows(out)
        for name in ("val", "test"):
            assert all("skin_tone" not in about for _, about in found[name])
            seen += any(key.startswith(f"noto/{WAVE.lower()}") for key, _ in found[name])
        tones = [about["skin_tone"] for _, about in found["train"] if "skin_tone" in about]
        assert tones in ([], ["1", "2", "3", "4", "5"])
    assert seen


def test_weights_make_concepts_equal(root: Path) -> None:
    split = open_split(root, "train")
    assert split.weights is not None
    total: dict[str, float] = {}
    for about, weight in zip(split.attributes(np.arange(len(split))), split.weights, strict=True):
        total[about["concept"]] = total.get(about["concept"], 0.0) + weight
    assert np.allclose(list(total.values()), len(split) / len(total), rtol=1e-5)
    assert open_split(root, "val").weights is None


def test_captions_name_the_emoji_in_both_languages(root: Path) -> None:
    split = open_split(root, "train")
    place = next(
        i for i, key in enumerate(split.keys(np.arange(len(split)))) if key.startswith("f")
    )
    code = split.keys(np.array([place]))[0].removeprefix("fluent-3d/").upper()
    for language, expected in (
        ("en", {f"thing {code}", f"thing {code}, Fluent 3D style", f"thing {code}, b"}),
        ("zh", {f"东西{code}", f"东西{code}，Fluent 3D风格", f"东西{code}，a，b"}),
    ):
        drawn = {split.captions(np.array([place]), (language,), seed)[0] for seed in range(60)}
        assert {text.replace(", a, b", ", b") for text in drawn} == expected


def test_drawings_lie_on_white_and_have_their_colour(root: Path) -> None:
    split = open_split(root, "train")
    everything = np.arange(len(split))
    for key, image in zip(split.keys(everything), split.images(everything), strict=True):
        style, code = key.split("/")
        assert image[0, 0].tolist() == [255, 255, 255]
        wanted = [int(color(code.upper())[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(image[8, 8].astype(int) - wanted).max() <= 1, style


def test_the_manifest_names_packages_and_licences(
    root: Path, packages: Path, tmp_path: Path
) -> None:
    manifest = verify_data(root)
    assert manifest["generator"]["packages"][0] == NAMES
    assert any("Apache-2.0" in licence for licence in manifest["licences"])
    assert len(manifest["licences"]) == 3
    styles = ("noto", "fluent-3d")
    prepare_emoji(tmp_path / "again", size=16, seed=0, styles=styles, packages=packages, workers=1)
    assert data_fingerprint(tmp_path / "again") == data_fingerprint(root)


def test_a_drawing_that_cannot_be_read_is_left_out_and_listed(
    packages: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(packages, tmp_path / "copy"))
    noto = copy / folder_of(STYLES["noto"].package) / "package" / "icons.json"
    icons = json.loads(noto.read_text())
    icons["icons"][f"icon-{PLAIN[3]}"]["body"] = "<circle"
    noto.write_text(json.dumps(icons))
    prepare_emoji(tmp_path / "out", size=8, seed=0, styles=("noto",), packages=copy, workers=1)
    skipped = verify_data(tmp_path / "out")["skipped"]
    assert [entry["file"] for entry in skipped] == [f"noto: {PLAIN[3].lower()}"]


def test_damaged_packages_and_unknown_styles_are_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crayon") as caught:
        prepare_emoji(tmp_path / "a", size=8, seed=0, styles=("crayon",), packages=packages)
    assert "noto" in caught.value.hint
    with pytest.raises(ConfigError):
        prepare_emoji(tmp_path / "a", size=8, seed=0, styles=(), packages=packages)
    with pytest.raises(IntegrityError, match="neither"):
        prepare_emoji(tmp_path / "a", size=8, seed=0, styles=("twemoji",), packages=packages)
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_names(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_npm_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentMissing, match="npm") as caught:
        prepare_emoji(tmp_path / "out", size=8, seed=0)
    assert "Node.js" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def fake_npm(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_packages_are_fetched_by_name_and_unpacked(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for npm packs what lies in a folder, as `npm pack` does; here a relative one."""
    archive = tmp_path / "names.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(packages / folder_of(NAMES) / "package", "package")
    fake_npm(tmp_path / "bin", f'[ "$1 $2" = "pack {NAMES}" ] && cp {archive} "$6/fetched.tgz"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    fetch_packages([NAMES], Path("fetched"))
    assert read_names(tmp_path / "fetched") == read_names(packages)
    assert not list((tmp_path / "fetched").rglob("*.tgz"))


@pytest.mark.parametrize("script", ["echo no such package >&2; exit 1", "exit 0"])
def test_a_failing_npm_is_quoted(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_npm(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(EnvironmentMissing, match=r"no such package|exit 0") as caught:
        fetch_packages([NAMES], tmp_path / "fetched")
    assert "npm pack" in caught.value.hint


def test_a_hanging_npm_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(tmp_path / "bin", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(emoji_packages, "_TIMEOUT_S", 0.2)
    with pytest.raises(EnvironmentMissing, match="within"):
        fetch_packages([NAMES], tmp_path / "fetched")
