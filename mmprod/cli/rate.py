"""The work of `mmprod codec rate`: our codecs and the classic ones on the same pictures.

Our sizes are those of real files, one for each picture, header included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmprod.bitstream.compressor import Compressor
from mmprod.cli.command import choices
from mmprod.cli.output import Output
from mmprod.cli.rate_codecs import Decoder, Ours
from mmprod.errors import ConfigError
from mmprod.evaluation.rate import Comparison, Level, Originals, RatePoint, compare, levels

if TYPE_CHECKING:
    from mmprod.evaluation.pictures import Pixels


@dataclass(frozen=True)
class RateResult:
    """Everything measured. `comparisons`: of every point of ours; `levels`: by PSNR."""

    codecs: tuple[Ours, ...]
    ours: tuple[RatePoint, ...]
    theirs: Mapping[str, tuple[RatePoint, ...]]
    comparisons: tuple[Comparison, ...]
    levels: tuple[Level, ...]
    decoders: tuple[Decoder, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "codecs": [codec.as_dict() for codec in self.codecs],
            "ours": [point.as_dict() for point in self.ours],
            "theirs": {name: [p.as_dict() for p in points] for name, points in self.theirs.items()},
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "bytes_at_psnr": [level.as_dict() for level in self.levels],
            "decoders": [asdict(decoder) for decoder in self.decoders],
        }


def pictures_of_split(root: Path, split: str, count: int) -> Pixels:
    """The first `count` pictures of a split, or all there are. Raises ConfigError when none."""
    from mmprod.data.store import open_split

    opened = open_split(root, split)
    if not len(opened):
        raise ConfigError(f"{root}: the split {split} is empty", hint="see mmprod data stats")
    return opened.images(np.arange(min(count, len(opened))))


def pictures_of_folder(out: Output, folder: Path, size: int, count: int) -> Pixels:
    """Pictures below a folder, by name, as squares of `size` pixels; what is none is named."""
    from mmprod.data.pictures import SUFFIXES, UnusablePicture, bombs_are_errors, read_picture

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="--pictures FOLDER of picture files")
    found = []
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    with bombs_are_errors():
        for path in paths[:count]:
            try:
                found.append(read_picture(path, size))
            except UnusablePicture as error:
                out.note(f"{path} is left out: {error}")
    if not found:
        raise ConfigError(f"{folder} holds no picture", hint=f"files {', '.join(sorted(SUFFIXES))}")
    return np.stack(found)


def pictures_asked(
    out: Output, prepared: tuple[Path | None, str], loose: tuple[Path | None, int], count: int
) -> Pixels:
    """Pictures of (data, split) or (folder, side): exactly one is given, or ConfigError."""
    (data, split), (folder, side) = prepared, loose
    if (data is None) == (folder is None):
        raise ConfigError(
            "give either --data or --pictures",
            hint="--data DATA --split test, or --pictures FOLDER",
        )
    if folder is not None:
        return pictures_of_folder(out, folder, side, count)
    return pictures_of_split(data or Path(), split, count)


def qualities_asked(text: str) -> tuple[int, ...]:
    """`"0,50"` -> (0, 50); `"all"` -> 0 to 100; nothing -> (). Raises ConfigError."""
    if text == "all":
        return tuple(range(101))
    found = choices(text)
    wrong = [part for part in found if not part.isdecimal() or int(part) > 100]
    if wrong:
        raise ConfigError(
            f"--qualities {text!r}: {wrong[0]!r} is no quality", hint="numbers of 0 to 100, or all"
        )
    return tuple(int(part) for part in found)


def measure_ours(codec: Ours, originals: Originals) -> Iterator[RatePoint]:
    """A point for each prior. Encoding includes what `mmprod compress` does with every file: it is
    read again, decoded and compared before it counts.
    """
    pictures, source = originals.pictures, codec.source
    for prior in codec.priors:
        with Compressor(source.dims, source.codec_facts(), source.runner) as compressor:
            next(iter(compressor.decompress(compressor.compress([("", pictures[0])], prior).data)))
            started = time.perf_counter()
            files = [compressor.compress([("", picture)], prior).data for picture in pictures]
            encoded = time.perf_counter()
            restored = [next(iter(compressor.decompress(data))).pixels for data in files]
            ended = time.perf_counter()
        count = len(pictures)
        yield originals.point(
            codec.label,
            prior,
            np.stack(restored),
            [len(data) for data in files],
            ((encoded - started) / count, (ended - encoded) / count),
        )


def conclude(
    codecs: Sequence[Ours],
    ours: Sequence[RatePoint],
    theirs: Mapping[str, Sequence[RatePoint]],
    decoders: Sequence[Decoder],
) -> RateResult:
    """Every point of ours against every classic codec, both ways."""
    comparisons = [compare(point, points) for point in ours for points in theirs.values()]
    return RateResult(
        tuple(codecs),
        tuple(ours),
        {name: tuple(points) for name, points in theirs.items()},
        tuple(comparisons),
        levels(ours, theirs),
        tuple(decoders),
    )
