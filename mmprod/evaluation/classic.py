"""Classic codecs as opponents: the same pictures as JPEG, WebP and AVIF files of every quality.

Each codec is given what it can do: JPEG with optimized tables, sequential or progressive, whichever
is smaller; WebP at its slowest method; JPEG and AVIF with full and with halved chroma. Sizes are
those of whole files in memory, metadata left out. Times are those of one call for each picture.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image, features

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.evaluation.pictures import Pixels
from mmprod.evaluation.rate import Originals, RatePoint

QUALITIES = (0, 1, 2, 4, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 85, 90, 95, 100)
"""Of 0 to 100: close together where files are small, since that is where codecs are compared."""


@dataclass(frozen=True)
class Classic:
    """One codec of Pillow: how a setting is saved, and which of its shared libraries decode it."""

    name: str
    format: str
    feature: str
    settings: Mapping[str, Mapping[str, Any]]
    """arguments of `save` by the setting's name"""
    variants: Sequence[Mapping[str, Any]] = field(default=({},))
    """tried for every picture; the smallest file counts"""
    lowest: int = 0
    highest: int = 100
    libraries: Sequence[str] = ()


CLASSICS: Mapping[str, Classic] = {
    "jpeg": Classic(
        "JPEG",
        "JPEG",
        "jpg",
        {"4:2:0": {"subsampling": 2}, "4:4:4": {"subsampling": 0}},
        variants=({"optimize": True}, {"optimize": True, "progressive": True}),
        lowest=1,
        highest=95,  # above it Pillow advises against: larger files, hardly better
        libraries=("libjpeg",),
    ),
    "webp": Classic(
        "WebP", "WEBP", "webp", {"4:2:0": {"method": 6}}, libraries=("libwebp-", "libsharpyuv")
    ),
    "avif": Classic(
        "AVIF",
        "AVIF",
        "avif",
        {
            "4:2:0": {"subsampling": "4:2:0", "speed": 4, "max_threads": 1},
            "4:4:4": {"subsampling": "4:4:4", "speed": 4, "max_threads": 1},
        },
        libraries=("libavif",),
    ),
}
EXACT: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "webp": ("lossless", {"lossless": True, "method": 6, "quality": 100}),
}
"""Lossless files of a codec that has them: on drawings they can be smaller than lossy ones."""


def qualities_of(codec: Classic, wanted: Sequence[int]) -> list[int]:
    """The wanted qualities that the codec has, brought into its range, each once."""
    return sorted({min(max(q, codec.lowest), codec.highest) for q in wanted})


def measure_classic(
    key: str, originals: Originals, qualities: Sequence[int] = QUALITIES
) -> Iterator[RatePoint]:
    """A point for each setting and quality of a codec, and for its lossless files if it has any.

    `key`: of CLASSICS. Raises EnvironmentMissing when this Pillow lacks the codec.
    """
    codec = find_classic(key)
    for setting, options in codec.settings.items():
        for quality in qualities_of(codec, qualities):
            chosen = {**options, "quality": quality}
            point = _measure(codec, f"q{quality} {setting}", chosen, originals)
            yield replace(point, dial=setting)
    if key in EXACT:
        setting, options = EXACT[key]
        yield replace(_measure(codec, setting, options, originals), dial=setting)


def find_classic(key: str) -> Classic:
    """A codec by its key. Raises ConfigError, EnvironmentMissing."""
    if key not in CLASSICS:
        raise ConfigError(f"there is no codec {key!r}", hint=f"choose from {', '.join(CLASSICS)}")
    codec = CLASSICS[key]
    if not features.check(codec.feature):
        raise EnvironmentMissing(
            f"this Pillow was built without {codec.name}",
            hint="pip install --force-reinstall pillow (its wheels have it), or leave "
            f"{key} out of --against",
        )
    return codec


def library_bytes(key: str) -> int | None:
    """Size of the shared libraries of a codec, encoder included; None where Pillow's installation
    does not list them (a system's own).
    """
    files = metadata.files("pillow") or []
    names = CLASSICS[key].libraries
    found = [f for f in files if any(f.name.startswith(name) for name in names) and ".so" in f.name]
    return sum(file.size or 0 for file in found) or None


def encode(codec: Classic, options: Mapping[str, Any], picture: Pixels) -> bytes:
    """One picture (H, W, 3) uint8 -> the smallest file of the codec's variants."""
    image, files = Image.fromarray(picture), []
    for variant in codec.variants:
        stream = io.BytesIO()
        image.save(stream, codec.format, **options, **variant)
        files.append(stream.getvalue())
    return min(files, key=len)


def decode(codec: Classic, data: bytes) -> Pixels:
    """A file of the codec -> picture (H, W, 3) uint8."""
    with Image.open(io.BytesIO(data), formats=[codec.format]) as image:
        return np.asarray(image.convert("RGB"), np.uint8)


def _measure(
    codec: Classic, setting: str, options: Mapping[str, Any], originals: Originals
) -> RatePoint:
    started = time.perf_counter()
    files = [encode(codec, options, picture) for picture in originals.pictures]
    encoded = time.perf_counter()
    restored = np.stack([decode(codec, data) for data in files])
    ended = time.perf_counter()
    seconds = (encoded - started) / len(files), (ended - encoded) / len(files)
    return originals.point(codec.name, setting, restored, [len(data) for data in files], seconds)
