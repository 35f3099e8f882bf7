"""`mmprod compress` on pictures of every kind, and on folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.cli.picture_files import pack_names

from .conftest import Mmprod
from .drawn import pixels, smooth, write


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode(mode: str, mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    suffix = ".tif" if mode in ("CMYK", "F") else ".png"
    path = tmp_path / f"a{suffix}"
    if mode == "I;16":
        Image.fromarray(smooth(20, 21)[..., 0].astype(np.uint16) * 257).save(path)
    else:
        write(path, 20, 21, mode)
    file = tmp_path / "a.mm"
    assert mmprod("compress", run, path, "--out", file).code == 0
    assert mmprod("decompress", run, file, "--out", tmp_path / "b.png").code == 0
    assert pixels(tmp_path / "b.png").shape == (20, 21, 3)


def test_a_turned_photograph_comes_back_upright(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    image, exif = Image.fromarray(smooth(20, 40)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    made = mmprod("compress", run, tmp_path / "a.jpg", "--out", tmp_path / "a.mm", "--json").json()
    assert (made["pictures"][0]["height"], made["pictures"][0]["width"]) == (40, 20)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (16, 16)])
def test_small_and_narrow_pictures(
    size: tuple[int, int], mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.mm"
    assert mmprod("compress", run, write(tmp_path / "a.png", *size), "--out", file).code == 0
    assert mmprod("decompress", run, file, "--out", tmp_path / "b.png").code == 0
    assert pixels(tmp_path / "b.png").shape == (*size, 3)


def test_a_folder_becomes_one_pack_and_a_folder_again(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "cat.png", 20, 30)
    write(folder / "cat.jpg", 20, 30)
    write(folder / "dog.png", 33, 17)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    file, back = tmp_path / "pack.mm", tmp_path / "back"
    made = mmprod("compress", run, folder, "--out", file, "--json").json()
    assert [row["name"] for row in made["pictures"]] == ["cat", "cat.png", "dog"]
    info = mmprod("decompress", "--info", file, "--json").json()
    assert info["names"] == ["cat", "cat.png", "dog"]
    assert info["sizes"] == [[20, 30], [20, 30], [33, 17]]
    assert mmprod("decompress", run, file, "--out", back).code == 0
    assert sorted(p.name for p in back.iterdir()) == ["cat.png", "cat.png.png", "dog.png"]
    again = mmprod("decompress", run, file, "--out", back)
    assert again.code == 2
    assert "--replace" in again.err
    unnamed = mmprod("compress", run, folder, "--out", file, "--no-names", "--replace", "--json")
    assert unnamed.json()["bytes"] < made["bytes"]
    assert mmprod("decompress", run, file, "--out", tmp_path / "n").code == 0
    assert sorted(p.name for p in (tmp_path / "n").iterdir())[0] == "pack-1.png"
    assert mmprod("decompress", run, file, "--out", tmp_path / "x.png").code == 2


def test_names_in_a_pack_are_plain_and_differ() -> None:
    paths = ["a/x.png", "b/x.png", "c/x.png", "X.jpg", "w:e?i|rd.png", " ..png", "ü" * 150 + ".png"]
    names = pack_names([Path(path) for path in paths])
    assert names[:6] == ["x", "x.png", "x-2", "X.jpg", "w_e_i_rd", "picture"]
    assert len(names[6].encode()) == 200
    assert len({name.casefold() for name in names}) == len(names)
