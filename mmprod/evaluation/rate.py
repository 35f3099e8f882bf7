"""Rate-distortion points and what they say about two codecs: bytes at equal quality, quality at
equal bytes. Torch-free.

A point is the mean over pictures of one setting of one codec. A codec of ours is a point and no
curve: nothing lies between two of them, so only files that exist are counted. A classic codec has a
quality dial: between two points of one dial (one chroma, say), quality is taken to grow evenly with
the logarithm of the bytes. What it takes for a PSNR is the least of what its dials take for exactly
that and of its real files that are better. A codec is not compared where it has no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from mmprod.evaluation.pictures import Pixels, ms_ssim, psnr, ssim


@dataclass(frozen=True)
class RatePoint:
    """Means over pictures. `bytes`: of a whole file; times in seconds for one picture."""

    codec: str
    setting: str
    bytes: float
    bpp: float
    psnr: float
    ssim: float
    ms_ssim: float
    encode_s: float
    decode_s: float
    extra: Mapping[str, float] = field(default_factory=dict)
    """figures from weights that the user gave, by the name they may bear"""
    dial: str = ""
    """settings of a codec with the same dial differ in nothing but quality"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One point of ours against a classic codec.

    `bytes_there`: what the other needs for our PSNR; `psnr_there`: what it reaches with our bytes;
    None where its files do not go (`smallest`, `largest`: the ends of its front).
    """

    codec: str
    setting: str
    other: str
    bytes: float
    psnr: float
    bytes_there: float | None
    psnr_there: float | None
    smallest: RatePoint
    largest: RatePoint

    def as_dict(self) -> dict[str, Any]:
        there = self.bytes_there
        ratio = None if there is None else there / self.bytes
        return {**asdict(self), "ratio": ratio, "words": self.words()}

    def words(self) -> str:
        """The comparison as a sentence that claims no more than was measured."""
        ours = f"{self.codec} ({self.setting}): {self.bytes:.0f} bytes, {self.psnr:.2f} dB"
        return f"{ours}. {self._at_equal_quality()} {self._at_equal_bytes()}"

    def _at_equal_quality(self) -> str:
        if self.bytes_there is not None:
            share = self.bytes / self.bytes_there
            verdict = (
                f"{1 - share:.0%} fewer bytes than {self.other}"
                if share < 1
                else f"{share - 1:.0%} more bytes than {self.other}"
            )
            return f"At equal PSNR {verdict} ({self.bytes_there:.0f})."
        if self.psnr < self.smallest.psnr:
            size, quality = f"{self.smallest.bytes:.0f} bytes", f"{self.smallest.psnr:.2f} dB"
            return f"{self.other} has no file this bad: its smallest is {size} and {quality}."
        high = self.largest
        return f"{self.other} does not reach this PSNR: its best is {high.psnr:.2f} dB."

    def _at_equal_bytes(self) -> str:
        if self.psnr_there is not None:
            gain = self.psnr - self.psnr_there
            return f"At equal bytes {abs(gain):.2f} dB {'better' if gain >= 0 else 'worse'}."
        if self.bytes < self.smallest.bytes:
            ratio = self.smallest.bytes / self.bytes
            return f"{self.other} has no file this small: its smallest is {ratio:.1f} times that."
        return f"{self.other} has no file this large."


@dataclass(frozen=True)
class Level:
    """A level of PSNR in dB: the smallest file of ours that reaches it (its own PSNR may be more),
    and the bytes of the others at exactly this level, None where their files do not go.
    """

    psnr: int
    ours: RatePoint
    others: Mapping[str, float | None]

    def ratio(self, other: str) -> float | None:
        """How many times our bytes the other codec takes."""
        there = self.others[other]
        return None if there is None else there / self.ours.bytes

    def as_dict(self) -> dict[str, Any]:
        return {
            "psnr": self.psnr,
            "ours": {key: getattr(self.ours, key) for key in ("codec", "setting", "bytes", "psnr")},
            "bytes": dict(self.others),
            "ratio": {name: self.ratio(name) for name in self.others},
        }


Judge = Callable[[Pixels, Pixels], Mapping[str, float]]
"""originals and restored (B, H, W, 3) uint8 -> further figures by name"""


@dataclass(frozen=True)
class Originals:
    """The pictures (B, H, W, 3) uint8 that every codec is measured on, and further figures to take,
    if any.
    """

    pictures: Pixels
    judge: Judge | None = None

    def point(
        self,
        codec: str,
        setting: str,
        restored: Pixels,
        sizes: Sequence[int],
        seconds: tuple[float, float],
    ) -> RatePoint:
        """Measure one setting: restored pictures, file sizes in bytes, and the seconds to encode
        and decode one picture.
        """
        if len(sizes) != len(self.pictures):
            raise ValueError(f"{len(sizes)} sizes for {len(self.pictures)} pictures")
        size = sum(sizes) / len(sizes)
        area = self.pictures.shape[1] * self.pictures.shape[2]
        return RatePoint(
            codec=codec,
            setting=setting,
            bytes=size,
            bpp=8 * size / area,
            psnr=float(psnr(self.pictures, restored).mean()),
            ssim=float(ssim(self.pictures, restored).mean()),
            ms_ssim=float(ms_ssim(self.pictures, restored).mean()),
            encode_s=seconds[0],
            decode_s=seconds[1],
            extra=self.judge(self.pictures, restored) if self.judge else {},
        )


def front(points: Iterable[RatePoint]) -> list[RatePoint]:
    """The points that no other beats in bytes and PSNR both: rising in bytes and in PSNR."""
    kept: list[RatePoint] = []
    for point in sorted(points, key=lambda p: (p.bytes, -p.psnr)):
        if not kept or point.psnr > kept[-1].psnr:
            kept.append(point)
    return kept


def psnr_at(points: Sequence[RatePoint], size: float) -> float | None:
    """The best PSNR of a codec with a quality dial in that many bytes; None where it has no file
    that small or that large.
    """
    if not min(p.bytes for p in points) <= size <= max(p.bytes for p in front(points)):
        return None
    found = [p.psnr for p in points if p.bytes <= size]
    for dial in _dials(points):
        between = _between([(math.log(p.bytes), p.psnr) for p in dial], math.log(size))
        found += [] if between is None else [between]
    return max(found)


def bytes_at(points: Sequence[RatePoint], quality: float) -> float | None:
    """The fewest bytes of a codec with a quality dial at that PSNR; None where it has no file that
    bad or that good.
    """
    if not min(p.psnr for p in front(points)) <= quality <= max(p.psnr for p in points):
        return None
    found = [p.bytes for p in points if p.psnr >= quality]
    for dial in _dials(points):
        between = _between([(p.psnr, math.log(p.bytes)) for p in dial], quality)
        found += [] if between is None else [math.exp(between)]
    return min(found)


def compare(ours: RatePoint, theirs: Sequence[RatePoint]) -> Comparison:
    """One of our points against all points of one other codec."""
    curve = front(theirs)
    if not curve:
        raise ValueError("there is nothing to compare with")
    return Comparison(
        codec=ours.codec,
        setting=ours.setting,
        other=curve[0].codec,
        bytes=ours.bytes,
        psnr=ours.psnr,
        bytes_there=bytes_at(theirs, ours.psnr),
        psnr_there=psnr_at(theirs, ours.bytes),
        smallest=curve[0],
        largest=curve[-1],
    )


def levels(
    ours: Sequence[RatePoint], theirs: Mapping[str, Sequence[RatePoint]]
) -> tuple[Level, ...]:
    """Every whole dB from our worst point to our best, each with a real file of ours."""
    low, high = (math.floor(end(p.psnr for p in ours)) for end in (min, max))
    found = []
    for level in range(low, high + 1):
        best = min((p for p in ours if p.psnr >= level), key=lambda p: (p.bytes, -p.psnr))
        others = {name: bytes_at(points, level) for name, points in theirs.items()}
        found.append(Level(level, best, others))
    return tuple(found)


def _dials(points: Iterable[RatePoint]) -> list[list[RatePoint]]:
    """The fronts of a codec's dials."""
    found: dict[str, list[RatePoint]] = {}
    for point in points:
        found.setdefault(point.dial, []).append(point)
    return [front(dial) for dial in found.values()]


def _between(line: Sequence[tuple[float, float]], x: float) -> float | None:
    """Value at `x` of a line through points of rising x; None outside them."""
    for (x0, y0), (x1, y1) in pairwise(line):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None
