"""`mmprod eval`: reconstruction, captions and generated pictures of a run or bundle, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import Seed, SourceArg
from mmprod.cli.output import Output, Table, shown
from mmprod.cli.source import Source, open_source
from mmprod.cli.use import BackendOption, PrecisionOption
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.cli.scores import Sample
    from mmprod.data.store import Split
    from mmprod.evaluation.pictures import Pixels

NO_ATTRIBUTES = "not run: the data set has no attributes"


def evaluate(
    out: Output,
    source: SourceArg,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Prepared data; a run's own by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, or test_combo: unseen pairs.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Held-out samples.")] = 200,
    seed: Seed = 0,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
    faces: Annotated[
        bool, typer.Option(help="Judge generated pictures too (trains a classifier; needs torch).")
    ] = True,
    draws: Annotated[
        int, typer.Option(min=0, help="Masks per sample for the likelihood bounds; 0: none.")
    ] = 4,
) -> None:
    """Measure a model on held-out data, with the same figures for every backend."""
    from mmprod.cli import scores
    from mmprod.data.store import open_split
    from mmprod.evaluation.agreement import chance

    opened = open_source(source, backend, precision)
    root = data or _data_of(source, opened)
    held_out = scores.sample(open_split(root, split), count, _languages(root))
    out.note(f"{len(held_out.pictures)} samples of {shown(root)} ({split})")
    restored = scores.reconstruct(opened, held_out.pictures)
    figures: dict[str, Any] = _likeness(held_out.pictures, restored)
    rows: list[tuple[str, object]] = [
        ("reconstruction, PSNR in dB", figures["psnr"]),
        ("reconstruction, SSIM", figures["ssim"]),
        ("reconstruction, MS-SSIM", figures["ms_ssim"]),
    ]
    if held_out.scorable:
        figures["chance"] = chance(held_out.attributes)["overall"]
        rows.append(("answers for other pictures, overall right", _percent(figures["chance"])))
    words = _captions(opened, held_out, seed)
    drawn = _faces(opened, held_out, open_split(root, "train"), seed) if faces else "not asked for"
    for name, title, agreement in (
        ("captions", "captions of pictures", words),
        ("faces", "pictures for captions", drawn),
    ):
        figures[name] = agreement
        shares = agreement if isinstance(agreement, dict) else {"overall": agreement}
        rows += [(f"{title}, {key} right", _percent(share)) for key, share in shares.items()]
    codes, tokens = scores.encode(opened, held_out)
    figures["search"] = scores.search(opened, codes, tokens, held_out.captions)
    rows += _found(figures["search"])
    if draws:
        figures["likelihood"] = scores.likelihood(opened, codes, tokens, draws, seed)
        rows += _bits(figures["likelihood"])
    about = {"source": source, "data": root, "split": split, "samples": len(held_out.pictures)}
    title = f"{opened.name} on {split}, {opened.backend}"
    result = {**about, "seed": seed, "backend": opened.backend, **figures}
    out.result(result, Table(title, ("figure", "value"), rows))


def _likeness(pictures: Pixels, restored: Pixels) -> dict[str, float]:
    """Means over pictures."""
    from mmprod.evaluation.pictures import ms_ssim, psnr, ssim

    measures = (("psnr", psnr), ("ssim", ssim), ("ms_ssim", ms_ssim))
    return {name: float(measure(pictures, restored).mean()) for name, measure in measures}


def _captions(source: Source, held_out: Sample, seed: int) -> dict[str, float] | str:
    from mmprod.cli import scores
    from mmprod.evaluation.agreement import caption_agreement

    if not held_out.scorable:
        return NO_ATTRIBUTES
    captions = scores.describe(source, held_out.pictures, seed)
    return caption_agreement(held_out.attributes, captions)


def _faces(source: Source, held_out: Sample, train: Split, seed: int) -> dict[str, float] | str:
    from mmprod.cli import scores
    from mmprod.evaluation.agreement import picture_agreement

    if not held_out.scorable:
        return NO_ATTRIBUTES
    judge = scores.train_judge(train, seed)
    pictures = scores.draw(source, held_out.captions, seed)
    return picture_agreement(judge, held_out.attributes, pictures)


def _data_of(path: Path, source: Source) -> Path:
    """The data set a run was trained on. Raises ConfigError for a bundle, which carries none."""
    if source.kind == "bundle":
        raise ConfigError("a bundle carries no data", hint="name a prepared data set: --data DATA")
    from mmprod.checkpoint import open_run

    return open_run(path).data_root


def _languages(root: Path) -> tuple[str, ...]:
    """Languages of which each sample has a caption: English where there is any, else all known."""
    from mmprod.data.attributes import LANGUAGES
    from mmprod.data.store import open_split

    split = open_split(root, "train")
    return LANGUAGES[:1] if next(split.all_captions(LANGUAGES[:1]), None) else LANGUAGES


def _found(figures: Mapping[str, Mapping[str, float]]) -> list[tuple[str, object]]:
    """One row for each direction of the search."""
    rows: list[tuple[str, object]] = []
    for name, title in (
        ("text_to_image", "search, captions -> pictures"),
        ("image_to_text", "search, pictures -> captions"),
    ):
        shares = figures[name]
        text = ", ".join(f"{key} {share:.1%}" for key, share in shares.items())
        rows.append((title, text))
    return rows


def _bits(figures: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Rows of the likelihood bounds."""
    rows: list[tuple[str, object]] = []
    for name, title in (("image", "picture"), ("image_given_text", "picture given its caption")):
        own = figures[name]
        text = f"{own['bits']:.1f} bits, {own['bits_per_code']:.3f} a code"
        rows.append((f"bound, {title}", f"{text}, {own['bits_per_pixel']:.4f} a pixel"))
    for name, title in (("text", "caption"), ("text_given_image", "caption given its picture")):
        own = figures[name]
        text = f"{own['bits']:.1f} bits, {own['bits_per_token']:.3f} a token"
        rows.append((f"bound, {title}", text))
    for name, title in (
        ("information_from_images", "pictures"),
        ("information_from_texts", "captions"),
    ):
        own = figures[name]
        margin = "" if own["error"] is None else f" +- {own['error']:.1f}"
        text = f"{own['bits']:.1f}{margin} bits"
        rows.append((f"information of the two about each other, from {title}", text))
    return rows


def _percent(share: float | str) -> str:
    return share if isinstance(share, str) else f"{share:.1%}"
