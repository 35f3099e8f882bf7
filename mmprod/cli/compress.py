"""`mmprod compress` and `mmprod decompress`: pictures to a small file and back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import SourceArg
from mmprod.cli.output import Fields, Output, Table, View, shown
from mmprod.cli.picture_files import Outside, find_pictures, pack_names, plan_places
from mmprod.cli.source import open_source
from mmprod.cli.use import PrecisionOption
from mmprod.errors import ConfigError
from mmprod.manifest import atomic_path

if TYPE_CHECKING:
    from mmprod.bitstream import Description
    from mmprod.bitstream.compressor import Compressed, Compressor, Entry
    from mmprod.bitstream.tiles import Pixels

PriorChoice = Literal["raw", "static", "fusion"]

SHOWN = 5
"""files that were left out, by name"""

ReplaceFlag = Annotated[bool, typer.Option("--replace", help="Overwrite files that exist.")]


def compress(
    out: Output,
    source: SourceArg,
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Pictures, or folders of pictures.")
    ],
    target: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="One file, for however many pictures.")
    ],
    prior: Annotated[
        PriorChoice,
        typer.Option(
            help="raw: fixed length; static: the codec's rates; fusion: the fusion model; smallest "
            "files, to be read only where its numbers come out the same."
        ),
    ] = "static",
    portable: Annotated[
        bool, typer.Option("--portable", help="Refuse a prior that cannot be read everywhere.")
    ] = False,
    names: Annotated[
        bool, typer.Option("--names/--no-names", help="Keep the names of several pictures.")
    ] = True,
    replace: ReplaceFlag = False,
    precision: PrecisionOption = "fp32",
) -> None:
    """Compress pictures of any size into one file, and prove that it can be read.

    PSNR is that of the pictures as they come back. With --prior static or raw the file is the same
    on every machine. Not kept: metadata, all but the first frame of an animation, transparency
    (flattened over white), all but the upper 8 of 16 bits.
    """
    check_portable(prior, portable)
    found = find_pictures(pictures)
    paths = found.paths
    Outside(source, paths, replace).check_file(target)
    _note_skipped(out, found.skipped)
    start = time.perf_counter()
    with _open(source, precision) as compressor:
        called = pack_names(paths) if names and len(paths) > 1 else [""] * len(paths)
        made = compressor.compress(_read(out, paths, called), prior)
        backend = compressor.backend
    with atomic_path(target, new=not replace) as temporary:
        temporary.write_bytes(made.data)
    seconds = time.perf_counter() - start
    rows = [_row(path, entry) for path, entry in zip(paths, made.entries, strict=True)]
    data = {
        "file": target,
        "bytes": len(made.data),
        "bits_per_pixel": made.bits_per_pixel,
        "prior": prior,
        "code_bits": made.code_bits,
        "pictures": rows,
        "seconds": seconds,
        "backend": backend,
    }
    out.result(data, *_views(made, rows, data))


def decompress(
    out: Output,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|BUNDLE", help="With the codec that compressed it.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Written by `mmprod compress`.", show_default=False),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", metavar="PNG|FOLDER", help="A pack needs a folder."),
    ] = None,
    info: Annotated[
        Path | None,
        typer.Option("--info", metavar="FILE", help="Only show what FILE says; needs no model."),
    ] = None,
    replace: ReplaceFlag = False,
    precision: PrecisionOption = "fp32",
) -> None:
    """Bring the pictures of a compressed file back, as PNG."""
    if info is not None:
        _show(out, info, alone=(source, file, target) == (None, None, None))
        return
    if source is None or file is None or target is None:
        raise ConfigError(
            "RUN|BUNDLE, FILE and --out are needed",
            hint="mmprod decompress BUNDLE FILE --out PICTURE.png, or --info FILE alone",
        )
    data, about = read_compressed(file)
    places = plan_places(about, file, target, Outside(source, [file], replace))
    start = time.perf_counter()
    with _open(source, precision) as compressor:
        for place, picture in zip(places, compressor.decompress(data), strict=True):
            _write_png(place, picture.pixels, new=not replace)
        backend = compressor.backend
    seconds = time.perf_counter() - start
    sizes = about.sizes
    found = [
        {"file": place, "width": width, "height": height}
        for place, (height, width) in zip(places, sizes, strict=True)
    ]
    table = [(shown(p), f"{w} x {h}") for p, (h, w) in zip(places, sizes, strict=True)]
    views = Table("", ("picture", "pixels"), table), Fields("", _about_time(seconds, backend))
    result = {"pictures": found, "prior": about.prior, "seconds": seconds, "backend": backend}
    out.result(result, *views)


def check_portable(prior: str, portable: bool) -> None:
    """Raise ConfigError when a file that must be portable would not be."""
    if portable and prior == "fusion":
        raise ConfigError(
            "a file with the fusion prior is not portable: it can be read only where the model "
            "gives the same numbers to the last bit",
            hint="--prior static --portable, or leave --portable out",
        )


def read_compressed(path: Path) -> tuple[bytes, Description]:
    """A compressed file and what it says of itself.

    Raises ConfigError when there is none, IntegrityError when it is damaged or something else.
    """
    from mmprod.bitstream import describe
    from mmprod.bitstream.container import MAX_FILE_BYTES

    if not path.is_file():
        raise ConfigError(f"{path} is no file", hint="mmprod compress writes one")
    with path.open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    return data, describe(data)


def _open(source: Path, precision: str) -> Compressor:
    """The codec of a run or bundle."""
    from mmprod.bitstream.compressor import Compressor

    opened = open_source(source, None, precision)
    return Compressor(opened.dims, opened.codec_facts(), opened.runner)


def _note_skipped(out: Output, skipped: Sequence[Path]) -> None:
    """What lies in a folder and does not come along."""
    if skipped:
        more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        listed = ", ".join(map(shown, skipped[:SHOWN]))
        out.note(f"left out, folders and files of other formats: {listed}{more}")


def _read(out: Output, paths: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[str, Pixels]]:
    """One picture after the other, with its name; what of it is not kept is noted."""
    from mmprod.data.pictures import UnusablePicture, bombs_are_errors, read_whole

    for path, name in zip(paths, names, strict=True):
        try:
            with bombs_are_errors():
                whole = read_whole(path)
        except UnusablePicture as error:
            hint = "give a PNG, JPEG, WebP, BMP, GIF or TIFF file"
            raise ConfigError(f"{path} is of no use: {error}", hint=hint) from error
        if whole.lost:
            out.note(f"{shown(path)}: not kept: {', '.join(whole.lost)}")
        yield name, whole.pixels


def _row(path: Path, entry: Entry) -> dict[str, Any]:
    """One picture in figures; a PSNR that is infinite is null, JSON having no infinity."""
    found = entry.psnr if math.isfinite(entry.psnr) else None
    about = {"picture": path, "name": entry.name, "width": entry.width, "height": entry.height}
    return {**about, "psnr": found}


def _views(
    made: Compressed, rows: Sequence[dict[str, Any]], data: dict[str, Any]
) -> tuple[View, ...]:
    """The pictures as a table, and the file in figures."""
    cells = [
        (shown(row["picture"]), f"{row['width']} x {row['height']}", _decibels(row["psnr"]))
        for row in rows
    ]
    where = "everywhere" if data["prior"] != "fusion" else f"with {data['backend']} as here"
    fields = {
        "file": shown(data["file"]),
        "size": f"{len(made.data):,} bytes, {made.bits_per_pixel:.4f} bits per pixel",
        "prior": f"{data['prior']}, can be read {where}",
        "proved": "read again, every code came back",
        **_about_time(data["seconds"], data["backend"]),
    }
    return Table("", ("picture", "pixels", "PSNR"), cells), Fields("", fields)


def _about_time(seconds: float, backend: str) -> dict[str, str]:
    return {"time": f"{seconds:.2f} s", "backend": backend}


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f} dB"


def _show(out: Output, path: Path, *, alone: bool) -> None:
    """What a file says of itself."""
    from dataclasses import asdict

    if not alone:
        raise ConfigError("--info FILE goes alone", hint=f"mmprod decompress --info {path}")
    _, about = read_compressed(path)
    names = about.names or ("",) * len(about.sizes)
    sizes = [f"{width} x {height}" for height, width in about.sizes]
    fields = {
        "file": f"{shown(path)}, format {about.format}",
        "size": f"{about.file_bytes:,} bytes, {about.payload_bytes:,} of them payload",
        "bits per pixel": f"{about.bits_per_pixel:.4f}",
        "codec": f"{about.codec}...",
        "prior": f"{about.prior}, written with {about.runtime}"
        if about.prior == "fusion"
        else f"{about.prior}, can be read everywhere",
    }
    rows = [(name or "-", size) for name, size in zip(names, sizes, strict=True)]
    data = {"file": path, **asdict(about), "bits_per_pixel": about.bits_per_pixel}
    out.result(data, Fields("", fields), Table("", ("picture", "pixels"), rows))


def _write_png(path: Path, pixels: Pixels, *, new: bool) -> None:
    from PIL import Image

    with atomic_path(path, new=new) as temporary:
        Image.fromarray(pixels).save(temporary, "png", optimize=True)
