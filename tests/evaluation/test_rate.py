"""Rate-distortion: classic codecs measured, fronts, interpolation, and honest sentences."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.evaluation.classic import CLASSICS, find_classic, library_bytes, measure_classic
from mmprod.evaluation.rate import Originals, RatePoint, bytes_at, compare, front, psnr_at

from .test_pictures import noisy, pictures


def point(codec: str, size: float, quality: float) -> RatePoint:
    return RatePoint(codec, f"{size}", size, size / 512, quality, 0.5, 0.5, 0.01, 0.01)


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
    known = library_bytes("webp")
    assert known is None or known > 10_000
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    assert library_bytes("webp") is None


def test_points_are_plain_data() -> None:
    found = point("c", 1, 2)
    assert found.as_dict() == dataclasses.asdict(found)
    assert compare(found, THEIRS).as_dict()["words"]
    assert np.isfinite(found.bpp)
