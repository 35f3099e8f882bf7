"""What `mmprod codec rate` shows and writes: tables, sentences, rate.json, plots and a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Table, Text, megabytes, shown
from mmprod.cli.rate import RateResult
from mmprod.errors import ConfigError
from mmprod.evaluation.rate import RatePoint, front
from mmprod.manifest import write_json

if TYPE_CHECKING:
    from mmprod.evaluation.rate import Judge

POINTS = (
    "codec", "setting", "bytes", "bpp", "PSNR", "SSIM", "MS-SSIM", "encode ms", "decode ms",
)  # fmt: skip
NEAR = 4.0
"""dB above our best: how far the console follows the classic codecs."""
TIMES = "in brackets: times ours"
DECODERS = ("codec", "decoder", "what it is")


@dataclass(frozen=True)
class RateAbout:
    """What was measured: where the pictures are from, how many, their size, and where to write."""

    where: str
    count: int
    size: tuple[int, int]
    out: Path


def figures_asked(lpips: Path | None, heads: Path | None, features: Path | None) -> Judge | None:
    """The further figures that were asked for. Raises ConfigError for heads without a network."""
    from mmprod.evaluation.given import all_of, frechet_judge, lpips_judge

    if heads is not None and lpips is None:
        raise ConfigError("--lpips-heads needs --lpips", hint="give the VGG16 weights too")
    judges = [lpips_judge(lpips, heads)] if lpips else []
    return all_of(judges + ([frechet_judge(features)] if features else []))


def write(result: RateResult, about: RateAbout) -> tuple[Any, ...]:
    """Write rate.json, the plots, the tables and the page; the document and the views of the
    command.
    """
    from mmprod.report.page import Grid
    from mmprod.report.rate import RatePage, write_rate_page

    height, width = about.size
    data = {"kind": "codec rate", "format": 1, "pictures": about.count, "from": about.where,
            "height": height, "width": width, **result.as_dict()}  # fmt: skip
    table = about.out / "rate.json"
    write_json(table, data)
    sentences = _sentences(result)
    columns = (*POINTS, *_extras(result))
    tables = _tables(result)
    every = (("Files", columns, _rows(result, columns)), *tables)
    lead = f"{about.count} pictures of {about.where}, {height} x {width} pixels. Bytes, PSNR, SSIM "
    lead += "and MS-SSIM are means over pictures; files are whole, header included. Points of one "
    lead += "codec of ours differ in the prior only: raw, static, fusion, as far as it has them."
    page = RatePage(
        lead=lead,
        area=height * width,
        ours=result.ours,
        theirs=result.theirs,
        sentences=sentences,
        tables=[(title, Grid(tuple(c), tuple(map(tuple, r)))) for title, c, r in every],
    )
    written = [table, *write_rate_page(about.out, page)]
    near = Table("Files (all of them in rate.json)", columns, _rows(result, columns, NEAR))
    views = [near, *(Table(title, c, rows) for title, c, rows in tables)]
    words = "\n".join([*sentences, f"written: {', '.join(map(shown, written))}"])
    return {**data, "files": written}, *views, Text(words)


def _sentences(result: RateResult) -> list[str]:
    """Of each codec of ours, at its smallest files, beside each classic one."""
    best = {point.codec: point for point in sorted(result.ours, key=lambda p: -p.bytes)}
    chosen = {(point.codec, point.setting) for point in best.values()}
    return [c.words() for c in result.comparisons if (c.codec, c.setting) in chosen]


def _tables(result: RateResult) -> list[tuple[str, Sequence[str], Sequence[tuple[object, ...]]]]:
    """(title, columns, rows) of what was concluded."""
    names = list(result.theirs)
    there = {(c.codec, c.setting, c.other): c.bytes_there for c in result.comparisons}
    points = [
        (p.codec, p.setting, f"{p.bytes:.0f}", f"{p.psnr:.2f}",
         *(_there(there[p.codec, p.setting, name], p.psnr, p.bytes, result.theirs[name])
           for name in names))
        for p in result.ours
    ]  # fmt: skip
    levels = [
        (level.psnr, level.ours.codec, level.ours.setting, f"{level.ours.bytes:.0f}",
         f"{level.ours.psnr:.2f}",
         *(_there(level.others[name], level.psnr, level.ours.bytes, result.theirs[name])
           for name in names))
        for level in result.levels
    ]  # fmt: skip
    codecs = [
        (c.label, shown(Path(c.about.path)), c.about.dim, c.about.precision, ", ".join(c.priors))
        for c in result.codecs
    ]
    decoders = [
        (d.codec, "unknown" if d.bytes is None else megabytes(d.bytes), d.what)
        for d in result.decoders
    ]
    return [
        (f"Each file of ours, and the bytes of others at its PSNR ({TIMES})",
         ("codec", "prior", "bytes", "PSNR", *names), points),
        (f"Smallest file of ours that reaches a PSNR, and the bytes of others at it ({TIMES})",
         ("dB", "codec", "prior", "bytes", "has dB", *names), levels),
        ("Codecs of ours", ("codec", "folder", "D", "precision", "priors"), codecs),
        ("What a decoder takes", DECODERS, decoders),
    ]  # fmt: skip


def _there(there: float | None, quality: float, ours: float, theirs: Sequence[RatePoint]) -> str:
    """Their bytes for that PSNR and how many times ours, or where their files end."""
    if there is not None:
        return f"{there:.0f} ({there / ours:.2f}x)"
    smallest, *_ = front(theirs)
    if quality < smallest.psnr:
        return f"least: {smallest.bytes:.0f}, {smallest.psnr:.1f} dB"
    return f"at most {max(p.psnr for p in theirs):.1f} dB"


def _rows(
    result: RateResult, columns: Sequence[str], above: float = math.inf
) -> list[tuple[object, ...]]:
    """Ours, then the front of each classic codec: its smallest file, and those of at most `above`
    dB more than our best.
    """
    best = max(point.psnr for point in result.ours)
    points = list(result.ours)
    for theirs in result.theirs.values():
        curve = front(theirs)
        points += curve[:1] + [p for p in curve[1:] if p.psnr <= best + above]
    return [_row(point, columns[len(POINTS) :]) for point in points]


def _row(point: RatePoint, extras: Sequence[str]) -> tuple[object, ...]:
    return (
        point.codec,
        point.setting,
        f"{point.bytes:.1f}",
        f"{point.bpp:.3f}",
        f"{point.psnr:.2f}",
        f"{point.ssim:.3f}",
        f"{point.ms_ssim:.3f}",
        f"{1000 * point.encode_s:.2f}",
        f"{1000 * point.decode_s:.2f}",
        *(f"{point.extra[name]:.4f}" for name in extras),
    )


def _extras(result: RateResult) -> list[str]:
    return list(dict.fromkeys(name for point in result.ours for name in point.extra))
