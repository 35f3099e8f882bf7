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
from mmprod.bitstream.priors import PriorName
from mmprod.cli.command import choices
from mmprod.cli.output import Output
from mmprod.cli.source import Source, open_source
from mmprod.errors import ConfigError
from mmprod.evaluation.rate import Comparison, Originals, RatePoint, bytes_at, compare, front

if TYPE_CHECKING:
    from mmprod.evaluation.pictures import Pixels

PRIORS: tuple[PriorName, ...] = ("raw", "static", "fusion")


@dataclass(frozen=True)
class Decoder:
    """What decoding needs: bytes of weights or libraries (None: not known), and what they are."""

    codec: str
    bytes: int | None
    what: str


@dataclass(frozen=True)
class RateResult:
    """Everything measured. `levels`: dB -> bytes by codec, None where its files do not go."""

    ours: tuple[RatePoint, ...]
    theirs: Mapping[str, tuple[RatePoint, ...]]
    comparisons: tuple[Comparison, ...]
    levels: Mapping[int, Mapping[str, float | None]]
    decoders: tuple[Decoder, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "ours": [point.as_dict() for point in self.ours],
            "theirs": {name: [p.as_dict() for p in points] for name, points in self.theirs.items()},
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "bytes_at_psnr": {str(level): dict(row) for level, row in self.levels.items()},
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


def open_codecs(paths: Sequence[Path], precision: str) -> dict[str, tuple[Path, Source]]:
    """Runs and bundles by a name of their own: that of the folder, the path where names are equal.

    Raises ConfigError for a folder given twice.
    """
    found: dict[str, tuple[Path, Source]] = {}
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        label = name if names.count(name) == 1 else str(path)
        if label in found:
            raise ConfigError(f"{path} is given twice", hint="name each run or bundle once")
        found[label] = path, open_source(path, None, precision)
    return found


def priors_of(path: Path, source: Source, wanted: Sequence[str]) -> list[PriorName]:
    """The wanted priors; without a wish all that the run or bundle has.

    Raises ConfigError for an unknown one, or the fusion prior of a codec alone.
    """
    unknown = [name for name in wanted if name not in PRIORS]
    if unknown:
        raise ConfigError(
            f"there is no prior {', '.join(unknown)}", hint=f"choose from {', '.join(PRIORS)}"
        )
    able = [name for name in PRIORS if name != "fusion" or _has_fusion(path, source)]
    lacking = [name for name in wanted if name not in able]
    if lacking:
        raise ConfigError(
            f"{path} has no fusion model to code with", hint="leave fusion out of --priors"
        )
    return [name for name in able if not wanted or name in wanted]


def measure_ours(
    label: str, source: Source, priors: Sequence[PriorName], originals: Originals
) -> Iterator[RatePoint]:
    """A point for each prior. Encoding includes what `mmprod compress` does with every file: it is
    read again, decoded and compared before it counts.
    """
    pictures = originals.pictures
    for prior in priors:
        with Compressor(source.dims, source.codec_facts(), source.runner) as compressor:
            next(iter(compressor.decompress(compressor.compress([("", pictures[0])], prior).data)))
            started = time.perf_counter()
            files = [compressor.compress([("", picture)], prior).data for picture in pictures]
            encoded = time.perf_counter()
            restored = [next(iter(compressor.decompress(data))).pixels for data in files]
            ended = time.perf_counter()
        count = len(pictures)
        yield originals.point(
            label,
            prior,
            np.stack(restored),
            [len(data) for data in files],
            ((encoded - started) / count, (ended - encoded) / count),
        )


def decoder_of(label: str, path: Path, source: Source, priors: Sequence[PriorName]) -> Decoder:
    """Weights that a reader of our files needs; with the fusion prior its model too."""
    fusion = "fusion" in priors
    if source.kind == "bundle":
        from mmprod.bundle import open_bundle

        bundle = open_bundle(path)
        graphs = ["codec_decode", *(["code_prior"] if fusion else [])]
        files = [bundle.artefacts(role="onnx", graph=name, precision="fp32")[0] for name in graphs]
        size = sum(bundle.path(file).stat().st_size for file in files)
        return Decoder(label, size, f"{' and '.join(graphs)} in fp32, without ONNX Runtime")
    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.models import load_codec

    run = open_run(path)
    codec = load_codec(run)
    values = sum(p.numel() for p in codec.decoder.parameters()) + codec.quantizer.table().numel()
    size, what = 4 * values, "decoder and codebook in fp32, without PyTorch"
    if fusion:
        size += run.weights_path("fusion").stat().st_size
        what = "decoder, codebook and fusion model in fp32, without PyTorch"
    return Decoder(label, size, what)


def conclude(
    ours: Sequence[RatePoint],
    theirs: Mapping[str, Sequence[RatePoint]],
    decoders: Sequence[Decoder],
) -> RateResult:
    """Comparisons of every codec of ours, at its smallest files, with every classic one."""
    best = {point.codec: point for point in sorted(ours, key=lambda p: -p.bytes)}
    comparisons = [compare(point, points) for point in best.values() for points in theirs.values()]
    fronts = {"ours": front(ours), **{name: front(points) for name, points in theirs.items()}}
    finite = [p.psnr for curve in fronts.values() for p in curve if p.psnr < 45]
    low, high = int(min(finite)), round(max(p.psnr for p in ours) + 3)
    levels = {
        level: {name: bytes_at(curve, level) for name, curve in fronts.items()}
        for level in range(low, high + 1)
    }
    return RateResult(
        tuple(ours),
        {name: tuple(points) for name, points in theirs.items()},
        tuple(comparisons),
        {level: row for level, row in levels.items() if row["ours"] is not None},
        tuple(decoders),
    )


def _has_fusion(path: Path, source: Source) -> bool:
    if source.kind == "bundle":
        from mmprod.bundle import open_bundle

        return bool(open_bundle(path).artefacts(role="onnx", graph="code_prior"))
    from mmprod.checkpoint import open_run

    return "fusion" in open_run(path).stages
