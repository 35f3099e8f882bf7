"""Picture files that are odd, broken or hostile."""

from __future__ import annotations

import io
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.data import pictures
from mmprod.data.pictures import UnusablePicture, bombs_are_errors, read_picture, read_whole

LITTLE = Image.fromarray((np.arange(12 * 16 * 3) % 251).astype(np.uint8).reshape(12, 16, 3))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def orientation(count: int, kind: int, value: bytes) -> bytes:
    """EXIF of one entry, the orientation, honest or not."""
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        orientation(1, 3, b"\x63"),  # no orientation of the standard
        orientation(1, 2, b"6"),  # text
        orientation(4, 3, b"\xff\xff\xff\xff"),  # four values, far behind the end
        orientation(1, 12, b"\xff\xff\xff\xff"),  # a float, far behind the end
        orientation(1, 3, b"\x06")[:15],  # ends inside the entry
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM",
        b"Exif\0\0garbage",
    ],
)
def test_hostile_orientations_are_read_or_refused(kind: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(saved(LITTLE, kind, exif=exif))
    with bombs_are_errors():
        for read in (lambda: read_whole(path).pixels, lambda: read_picture(path, 8)):
            try:
                assert read().dtype == np.uint8
            except UnusablePicture as error:
                assert "cannot be decoded" in str(error)


def test_what_stumbles_over_other_metadata_does_not_matter(tmp_path: Path) -> None:
    """An orientation beside an entry that cannot be written again: only the former is looked at."""
    turn = struct.pack("<HHI", 0x0112, 3, 1) + b"\x06\0\0\0"
    odd = struct.pack("<HHI", 0x0131, 10, 1) + struct.pack("<I", 38)  # a fraction as text
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + turn + odd + bytes(4)
    (tmp_path / "x").write_bytes(saved(LITTLE, "JPEG", exif=exif + bytes(16)))
    with bombs_are_errors():
        assert read_whole(tmp_path / "x").pixels.shape == (16, 12, 3)


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation(value: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    path, exif = tmp_path / "x.png", Image.Exif()
    exif[0x0112] = value
    LITTLE.save(path, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_whole(path).pixels, wanted)


def test_fuzzed_pictures_are_read_or_refused(tmp_path: Path) -> None:
    small = pictures.Bounds(pixels=10_000)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    files = [saved(LITTLE, kind, exif=exif) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]
    files += [saved(LITTLE.convert("P"), kind, transparency=3) for kind in ("GIF", "PNG")]
    files += [saved(LITTLE, "BMP"), saved(LITTLE, "TIFF", compression="tiff_adobe_deflate")]
    rng, path, tally = np.random.default_rng(0), tmp_path / "x", Counter[str]()
    with bombs_are_errors():
        for index in range(240):
            data = bytearray(files[index % len(files)])
            for _ in range(int(rng.integers(1, 5))):
                at = int(rng.integers(min(len(data), 250) if rng.random() < 0.7 else len(data)))
                data[at] = rng.choice([0, 1, 2, 127, 128, 255, int(rng.integers(256))])
            path.write_bytes(data[: int(rng.integers(8, len(data)))] if index % 9 == 0 else data)
            for read in (
                lambda: read_whole(path, small).pixels,
                lambda: read_picture(path, 8, small),
            ):
                try:
                    assert read().dtype == np.uint8
                    tally["read"] += 1
                except UnusablePicture:
                    tally["refused"] += 1
    assert min(tally["read"], tally["refused"]) > 60, tally


@pytest.mark.parametrize("error", [struct.error, TypeError, AttributeError, KeyError, RuntimeError])
def test_whatever_a_decoder_raises_means_a_broken_file(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Image.Image) -> None:
        raise error("deep inside")

    path = tmp_path / "x.png"
    LITTLE.save(path)
    monkeypatch.setattr(Image.Image, "getexif", broken)
    for read in (read_whole, lambda path: read_picture(path, 8)):
        with pytest.raises(UnusablePicture, match="deep inside"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_of_sixteen_bits_the_upper_eight_count(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    values = np.array([[0, 255, 256, 0x8000, 0xFEFF, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(path)
    found = read_whole(path)
    assert found.pixels[0].tolist() == [[v >> 8] * 3 for v in values[0].tolist()]
    assert found.lost == ("the lower 8 of 16 bits",)


@pytest.mark.parametrize(("mode", "words"), [("F", "floating-point"), ("I", "32-bit integers")])
def test_values_without_a_range_are_refused(mode: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.new(mode, (8, 8), 100).save(path)
    for read in (read_whole, lambda path: read_picture(path, 8)):
        with pytest.raises(UnusablePicture, match=words):
            read(path)


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    LITTLE.save(tmp_path / "a.png")
    assert read_whole(tmp_path / "a.png").lost == ()
    path = tmp_path / "a.gif"
    clear = LITTLE.convert("P")
    clear.save(path, save_all=True, append_images=[clear.rotate(180)], transparency=0)
    assert read_whole(path).lost == (
        "all but the first of 2 frames",
        "transparency (now over white)",
    )
