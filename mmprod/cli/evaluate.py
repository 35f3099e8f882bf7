"""`mmprod eval`: what a run or bundle makes of held-out samples: a table, JSON, a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import Seed, SourceArg
from mmprod.cli.output import Output, Text, shown
from mmprod.cli.paths import check_folder_target
from mmprod.cli.source import Source, open_source
from mmprod.cli.use import BackendOption, PrecisionOption
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.cli.scores import Pixels, Sample


def evaluate(
    out: Output,
    source: SourceArg,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Prepared data; a run's own by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, or test_combo: unseen pairs.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Held-out samples.")] = 200,
    language: Annotated[
        Literal["en", "zh"] | None,
        typer.Option(help="Of the captions asked with; en where there is any.", show_default=False),
    ] = None,
    seed: Seed = 0,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
    faces: Annotated[
        bool, typer.Option(help="Draw and judge pictures too (trains a classifier; needs torch).")
    ] = True,
    features: Annotated[
        Path | None, typer.Option(metavar="ONNX", help="Feature extractor: Frechet distance.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=0, help="Masks per sample for the likelihood bounds; 0: none.")
    ] = 4,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Write report.html, with pictures, and report.json."
        ),
    ] = None,
) -> None:
    """Measure a model on held-out data, with the same figures for every backend."""
    from mmprod.cli.findings import Request, find
    from mmprod.cli.findings_page import write_report
    from mmprod.cli.findings_views import figure_table
    from mmprod.data.store import open_split
    from mmprod.evaluation.given import frechet_judge
    from mmprod.evaluation.words import check_words

    if features is not None and not faces:
        raise ConfigError(
            "--features measures generated pictures, --no-faces draws none",
            hint="leave one of them out",
        )
    distance = frechet_judge(features) if features is not None else None
    check_words()
    opened = open_source(source, backend, precision)
    root = data or _data_of(source, opened)
    languages = (language,) if language else _languages(root)
    held_out = _sample(root, split, count, languages)
    unseen = _unseen(root, split, count, languages) if faces and held_out.scorable else None
    train = open_split(root, "train") if faces else None
    others = _others(root, split, count) if faces else None
    if target is not None:
        check_folder_target(target)
    out.note(f"{len(held_out.pictures)} samples of {shown(root)} ({split})")
    found = find(out, opened, Request(held_out, train, unseen, others, seed, distance, draws))
    about: dict[str, Any] = {
        "source": source,
        "data": root,
        "split": split,
        "samples": len(held_out.pictures),
        "languages": languages,
        "seed": seed,
        "backend": opened.backend,
    }
    title = f"{opened.name} on {split}, {opened.backend}"
    result = about | found.figures
    views: list[Any] = [figure_table(title, found.figures)]
    if target is not None:
        result["files"] = write_report(target, title, result, found)
        views.append(Text(f"written: {', '.join(map(shown, result['files']))}"))
    out.result(result, *views)


def _sample(root: Path, split: str, count: int, languages: Sequence[str]) -> Sample:
    """The first samples of a split. Raises ConfigError for one that is not there, or is empty."""
    from mmprod.cli import scores
    from mmprod.data.store import open_split

    opened = open_split(root, split)
    if not len(opened):
        raise ConfigError(f"{root}: the split {split} is empty", hint="see mmprod data stats")
    return scores.sample(opened, count, languages)


def _unseen(root: Path, split: str, count: int, languages: Sequence[str]) -> Sample | None:
    """Samples of pairs that training never showed, where the data set has some beside `split`."""
    from mmprod.cli.findings import UNSEEN
    from mmprod.data.store import read_manifest

    if split == UNSEEN or UNSEEN not in read_manifest(root)["splits"]:
        return None
    return _sample(root, UNSEEN, count, languages)


def _others(root: Path, split: str, count: int) -> Pixels | None:
    """As many real pictures of a further split, which neither the model nor a judge was trained on;
    None where `split` is trained on itself, or there is no such split.
    """
    import numpy as np

    from mmprod.data.store import open_split, read_manifest

    known = read_manifest(root)["splits"]
    beside = [name for name in ("val", "test") if name != split and name in known]
    if split == "train" or not beside:
        return None
    opened = open_split(root, beside[0])
    return opened.images(np.arange(min(count, len(opened))))


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
