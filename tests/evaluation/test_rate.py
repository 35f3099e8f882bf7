"""Rate-distortion: classic codecs measured, fronts, interpolation, and honest sentences."""

from __future__ import annotations

import dataclasses
import io
from importlib.metadata import PackagePath

import numpy as np
import pytest
from PIL import Image

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.evaluation.classic import CLASSICS, find_classic, library_bytes, measure_classic
from mmprod.evaluation.rate import (
    Originals,
    RatePoint,
    bytes_at,
    compare,
    front,
    levels,
    psnr_at,
)

from .test_pictures import noisy, pictures


def point(codec: str, size: float, quality: float, dial: str = "") -> RatePoint:
    setting = f"{size}"
    return RatePoint(codec, setting, size, size / 512, quality, 0.5, 0.5, 0.01, 0.01, dial=dial)


THEIRS = [point("X", s, q) for s, q in ((100, 20.0), (200, 24.0), (150, 19.0), (400, 28.0))]


def test_front_drops_what_another_point_beats() -> None:
    assert [(p.bytes, p.psnr) for p in front(THEIRS)] == [(100, 20), (200, 24), (400, 28)]


def test_interpolation_is_even_in_the_logarithm_of_bytes() -> None:
    curve = front(THEIRS)
    assert psnr_at(curve, 100 * 2**0.5) == pytest.approx(22)
    assert bytes_at(curve, 26) == pytest.approx(200 * 2**0.5)
    assert psnr_at(curve, 100) == pytest.approx(20)
    assert bytes_at(curve, 28) == pytest.approx(400)
    for outside in (99.0, 401.0):
        assert psnr_at(curve, outside) is None
    for outside in (19.9, 28.1):
        assert bytes_at(curve, outside) is None


def test_nothing_is_read_off_between_two_dials() -> None:
    lossy = [point("X", 100, 20.0, "4:2:0"), point("X", 400, 30.0, "4:2:0")]
    both = [*lossy, point("X", 500, 100.0, "lossless")]
    assert bytes_at(both, 25) == pytest.approx(200)
    assert bytes_at(both, 60) == 500  # its only file that good
    assert psnr_at(both, 450) == 30
    assert bytes_at([*lossy, point("X", 150, 100.0, "lossless")], 25) == 150


def test_levels_take_real_files_of_ours_and_exact_ones_of_others() -> None:
    ours = [point("a", 90, 21.5), point("b", 300, 23.2), point("b", 250, 23.2)]
    found = {level.psnr: level for level in levels(ours, {"X": THEIRS, "Y": THEIRS[3:]})}
    assert list(found) == [21, 22, 23]
    assert found[21].ours.bytes == 90
    assert found[22].ours.bytes == 250  # and nothing between a and b
    assert found[22].ours.psnr == 23.2
    assert found[22].others["X"] == pytest.approx(100 * 2**0.5)
    assert found[22].ratio("X") == pytest.approx(100 * 2**0.5 / 250)
    assert found[22].others["Y"] is None
    assert found[22].as_dict()["ratio"]["Y"] is None


def test_levels_of_points_beyond_45_db() -> None:
    ours = [point("a", 90, 52.3)]
    theirs = [point("X", 500, 46.0), point("X", 800, 60.0)]
    (level,) = levels(ours, {"X": theirs})
    assert level.psnr == 52
    assert 500 < (level.others["X"] or 0) < 800


def test_words_say_where_each_wins_and_where_nothing_can_be_said() -> None:
    better = compare(point("ours", 100, 24.0), THEIRS)
    assert better.bytes_there == pytest.approx(200)
    assert better.psnr_there == pytest.approx(20)
    assert "50% fewer bytes than X" in better.words()
    assert "4.00 dB better" in better.words()
    worse = compare(point("ours", 300, 22.0), THEIRS)
    assert "more bytes than X" in worse.words()
    assert "worse" in worse.words()
    tiny = compare(point("ours", 50, 15.0), THEIRS).words()
    assert "no file this bad" in tiny
    assert "no file this small: its smallest is 2.0 times that" in tiny
    huge = compare(point("ours", 900, 40.0), THEIRS).words()
    assert "does not reach this PSNR: its best is 28.00" in huge
    assert "no file this large" in huge


def test_a_point_holds_means_of_real_sizes() -> None:
    originals = pictures(2, 32)
    measured = Originals(originals, lambda a, b: {"pictures": float(len(a))})
    found = measured.point("c", "s", noisy(originals, 5), [10, 30], (0.5, 0.25))
    assert found.extra == {"pictures": 2.0}
    assert found.bytes == 20
    assert found.bpp == 8 * 20 / 1024
    assert 25 < found.psnr < 45
    with pytest.raises(ValueError, match="sizes"):
        measured.point("c", "s", originals, [10], (0, 0))


@pytest.mark.parametrize("key", list(CLASSICS))
def test_classic_codecs_get_better_with_bytes(key: str) -> None:
    originals = Originals(pictures(2, 32))
    points = list(measure_classic(key, originals, (0, 50, 100)))
    curve = front(points)
    assert len(curve) >= 3
    assert curve[0].bytes == min(p.bytes for p in points)
    assert curve[-1].psnr > curve[0].psnr + 5
    exact = [p for p in points if p.setting == "lossless"]
    assert all(p.psnr == 100 for p in exact)
    assert bool(exact) == (key == "webp")


def test_jpeg_counts_the_smaller_of_its_two_forms() -> None:
    originals = pictures(1, 64)
    found = next(iter(measure_classic("jpeg", Originals(originals), (30,))))
    plain = io.BytesIO()
    Image.fromarray(originals[0]).save(plain, "JPEG", quality=30)
    assert found.bytes <= len(plain.getvalue())


def test_a_codec_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="jxl"):
        find_classic("jxl")
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(EnvironmentMissing, match="AVIF"):
        find_classic("avif")


def test_library_sizes_are_counted_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [PackagePath(f"pillow.libs/{name}") for name in ("libwebp-1.so.7", "libwebpmux.so")]
    listed += [PackagePath("pillow.libs/libsharpyuv.so.0"), PackagePath("PIL/libwebp-notes.txt")]
    for size, file in zip((1000, 200, 30, 4), listed, strict=True):
        monkeypatch.setattr(file, "size", size, raising=False)
    monkeypatch.setattr("importlib.metadata.files", lambda name: listed)
    assert library_bytes("webp") == 1030
    assert library_bytes("avif") is None
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    assert library_bytes("webp") is None


def test_points_are_plain_data() -> None:
    found = point("c", 1, 2)
    assert found.as_dict() == dataclasses.asdict(found)
    assert compare(found, THEIRS).as_dict()["words"]
    assert compare(point("c", 50, 24.0), THEIRS).as_dict()["ratio"] == pytest.approx(4)
    assert np.isfinite(found.bpp)
