"""`mmprod codec`: choose a codebook by its rate and distortion, and compare codecs with JPEG, WebP
and AVIF.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmprod.cli.command import Overrides, choices, command, group, some
from mmprod.cli.output import Output
from mmprod.cli.paths import check_folder_target
from mmprod.cli.use import PrecisionOption
from mmprod.errors import ConfigError, NumericsError

app = group("Choose and compare codecs by rate and distortion.")


@command(app, "sweep")
def sweep(
    out: Output,
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="NAME|PATH", help="Preset or TOML file.")
    ] = "small",
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Prepared data; made once if not given.")
    ] = None,
    sizes: Annotated[str, typer.Option(metavar="K,K", help="Codes of one book.")] = "256,1024,4096",
    dims: Annotated[str, typer.Option(metavar="D,D", help="Channels of a latent position.")] = "8",
    quantizers: Annotated[str, typer.Option(metavar="NAME,NAME")] = "spherical",
    factors: Annotated[
        str, typer.Option(metavar="F,F", help="Pixels per latent position; the preset's own.")
    ] = "",
    books: Annotated[int, typer.Option(min=2, help="Books of product and residual.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of a member; the preset's own.")
    ] = None,
    target: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder; the same command goes on.")
    ] = Path("sweeps/codec"),
    pictures: Annotated[int, typer.Option(min=2, help="Validation pictures measured.")] = 512,
    worth: Annotated[
        float | None,
        typer.Option(min=0, help="dB that a further coded bit per token must buy; 0.25."),
    ] = None,
    healthy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least usage of a codebook; 0.9.")
    ] = None,
    override: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the members and their cost.")
    ] = False,
) -> None:
    """Train a codec for each combination on one data set, and recommend one with reasons."""
    from mmprod.cli import sweep as work
    from mmprod.cli.members import Grid
    from mmprod.cli.sweep_views import conclude, show_plan

    grid = Grid(
        _numbers(sizes, "--sizes"),
        _numbers(dims, "--dims"),
        some(quantizers, "--quantizers"),
        _numbers(factors, "--factors") if factors else (),
        books,
    )
    overrides = [*(override or ()), *([f"codec_train.steps={steps}"] if steps else [])]
    job = work.SweepJob(config, tuple(overrides), grid, target, data, pictures)
    if dry_run:
        show_plan(out, job)
        return
    check_folder_target(target)
    records = work.run(out, job)
    conclude(out, job, records, worth, healthy)
    if not work.done(records):
        raise NumericsError(
            f"all {len(records)} members failed", hint="a lower codec_train.lr, or precision fp32"
        )


@command(app, "rate")
def rate(
    out: Output,
    codecs: Annotated[
        list[Path], typer.Argument(metavar="RUN|BUNDLE...", help="Trained codecs of ours.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Prepared data: pictures of --split.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of --data.")] = "test",
    folder: Annotated[
        Path | None, typer.Option("--pictures", metavar="FOLDER", help="Your own pictures.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, help="Pixels a side of --pictures; the codec's own.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures, at most.")] = 100,
    against: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Classic codecs.")
    ] = "jpeg,webp,avif",
    qualities: Annotated[
        str, typer.Option(metavar="Q,Q", help="Of 0 to 100; or all; a ladder if not given.")
    ] = "",
    priors: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="raw, static, fusion; all there are.")
    ] = "",
    lpips: Annotated[
        Path | None, typer.Option(metavar="FILE", help="VGG16 weights, torchvision's names.")
    ] = None,
    lpips_heads: Annotated[
        Path | None, typer.Option(metavar="FILE", help="LPIPS heads, if in a file of their own.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="ONNX", help="Feature extractor: Frechet distance.")
    ] = None,
    target: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")] = Path(
        "rate"
    ),
    precision: PrecisionOption = "fp32",
) -> None:
    """Compare codecs with JPEG, WebP and AVIF on the same pictures: real files, real bytes."""
    from mmprod.cli import rate as work
    from mmprod.cli.rate_codecs import Decoder, open_ours
    from mmprod.cli.rate_views import RateAbout, figures_asked, write
    from mmprod.evaluation.classic import QUALITIES, find_classic, library_bytes, measure_classic
    from mmprod.evaluation.rate import Originals

    chosen = {key: find_classic(key) for key in some(against, "--against")}
    ladder = work.qualities_asked(qualities) or QUALITIES
    judge = figures_asked(lpips, lpips_heads, features)
    opened = open_ours(codecs, precision, choices(priors))
    check_folder_target(target)
    side = size or max(codec.source.dims.image_size for codec in opened)
    if data and size:
        raise ConfigError("--size is for --pictures", hint="prepared data has its own size")
    pictures = work.pictures_asked(out, (data, split), (folder, side), count)
    originals = Originals(pictures, judge)
    ours = []
    for codec in opened:
        out.note(f"{codec.label}: {len(pictures)} pictures with {', '.join(codec.priors)}")
        ours += list(work.measure_ours(codec, originals))
    theirs = {}
    for key, classic in chosen.items():
        out.note(f"{classic.name}: {len(pictures)} pictures")
        theirs[classic.name] = list(measure_classic(key, originals, ladder))
    libraries = "shared library in Pillow's wheel, encoder included"
    decoders = [codec.decoder for codec in opened]
    decoders += [Decoder(c.name, library_bytes(k), libraries) for k, c in chosen.items()]
    result = work.conclude(opened, ours, theirs, decoders)
    where = f"{data} ({split})" if data else str(folder)
    about = RateAbout(where, len(pictures), (pictures.shape[1], pictures.shape[2]), target)
    out.result(*write(result, about))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`"256, 1024"` -> (256, 1024), each once. Raises ConfigError."""
    parts = some(text, option)
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise ConfigError(
            f"{option} {text!r}: {wrong[0]!r} is no positive number",
            hint=f"for example {option} 256,1024",
        )
    return tuple(dict.fromkeys(int(part) for part in parts))
