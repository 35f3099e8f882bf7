"""`mmprod compress` on pictures of every kind, and on folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.bitstream.names import NOT_IN_NAMES
from mmprod.cli.picture_files import LONGEST_NAME, file_names, pack_names

from .conftest import Mmprod
from .drawn import pixels, smooth, write


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode(mode: str, mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
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


def test_names_from_anywhere_become_names_of_a_pack() -> None:
    from mmprod.bitstream.names import check_name

    given = [f"a{c}b.png" for c in sorted(NOT_IN_NAMES - {"/"})] + ["\u200b\xa0\ue000.png"]
    names = pack_names([Path(path) for path in given])
    assert len(set(names)) == len(given)
    assert names[-1] == "\u200b\xa0\ue000", "what is not in the list is kept"
    for name in names:
        check_name(name)


def test_names_too_long_for_a_file_system_are_cut_when_unpacked(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    from mmprod.bitstream import Picture, RawPrior, write_file
    from mmprod.bitstream.compressor import Compressor
    from mmprod.cli.source import open_source

    source = open_source(run, None)
    codec = Compressor(source.dims, source.codec_facts(), source.runner).codec
    codes = np.zeros(codec.planes, np.int32)
    names = ["ü" * 127, "ü" * 126, "u", "ü" * (LONGEST_NAME // 2)]
    pictures = [Picture(codes, 1, 1, name) for name in names]
    (tmp_path / "a.mm").write_bytes(write_file(pictures, codec, RawPrior(codec)).data)
    assert mmprod("decompress", run, tmp_path / "a.mm", "--out", tmp_path / "x").code == 0
    stems = {path.stem for path in (tmp_path / "x").iterdir()}
    cut = "ü" * (LONGEST_NAME // 2)
    assert stems == {cut, f"{cut}-2", f"{cut}-3", "u"} == set(file_names(names))


def test_a_file_with_the_longest_name_can_be_written(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    target = tmp_path / ("x" * 252 + ".mm")
    assert mmprod("compress", run, write(tmp_path / "a.png"), "--out", target).code == 0
    assert target.is_file()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_range_are_refused(
    mode: str, mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", 20, 21, mode)
    result = mmprod("compress", run, path, "--out", tmp_path / "a.mm")
    assert result.code == 2
    assert "what is black" in result.err and "8 or 16 bits" in result.err
    assert not (tmp_path / "a.mm").exists()


def test_what_is_not_kept_is_said(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    write(folder / "plain.png", 20, 20)
    write(folder / "clear.png", 20, 20, "RGBA")
    frames = [Image.fromarray(smooth(20, 20) // k) for k in (1, 2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(smooth(20, 21)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    said = mmprod("compress", run, folder, "--out", tmp_path / "a.mm").err.splitlines()
    assert [line.rpartition("/")[2] for line in said] == [
        "notes.txt",
        "clear.png: not kept: transparency (now over white)",
        "deep.png: not kept: the lower 8 of 16 bits",
        "moving.gif: not kept: all but the first of 2 frames",
    ]
    assert "left out" in said[0] and "/below, " in said[0]
    help_ = " ".join(mmprod("compress", "--help").out.replace("│", " ").split())
    assert "Not kept: metadata, all but the first frame" in help_


def test_the_limits_of_a_pack_are_looked_at_before_the_work(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmprod.bitstream import container, file, tiles

    encoded = []
    encode = tiles.encode

    def counted(*arguments: object) -> object:
        encoded.append(arguments[1])
        return encode(*arguments)

    monkeypatch.setattr(tiles, "encode", counted)
    paths = [write(tmp_path / f"{name}.png", 16, 16) for name in "abc"]
    target = tmp_path / "x.mm"
    for module, limit, value, words, worked in (
        (container, "MAX_PICTURES", 2, "3 pictures in a file", 0),
        (container, "MAX_FILE_PIXELS", 600, "768 pixels in a file", 2),
        (file, "MAX_FILE_CODES", 20, "32 codes in a file, 20 at most", 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            result = mmprod("compress", run, *paths, "--out", target)
        assert result.code == 2 and words in result.err, result.err
        assert len(encoded) == worked
        encoded.clear()
    assert not target.exists()
