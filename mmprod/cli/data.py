"""`mmprod data`: make a prepared data set, look at it, check it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import choices, command, group
from mmprod.cli.output import Fields, Output, Table, megabytes, shown

if TYPE_CHECKING:
    from mmprod.data.store import Split

STATS_SAMPLES = 2000
"""Captions and attributes that `stats` reads; pictures are counted exactly."""
STATS_VALUES = 12
"""Values of one attribute that the table names."""

app = group("Prepare, describe and check data sets.")
prepare = group("Make a prepared data set, from scratch or from your pictures.")
app.add_typer(prepare, name="prepare")

DataArg = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a prepared data set.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DATA", help="Folder to write.")]
SizeOption = Annotated[int, typer.Option("--size", min=8, help="Pixels per side.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Same seed, same data set.")]


@command(prepare, "avatars")
def avatars(
    out: Output,
    target: OutOption = Path("data/avatars"),
    count: Annotated[int, typer.Option(min=20, help="Pictures to draw.")] = 2000,
    size: SizeOption = 64,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per CPU.")] = 0,
) -> None:
    """Draw faces with captions that are true by construction; needs no network."""
    from mmprod.data.avatars import prepare_avatars

    prepare_avatars(target, count=count, size=size, seed=seed, workers=workers)
    _describe(out, target)


@command(prepare, "folder")
def folder(
    out: Output,
    source: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="Folder of pictures, in any depth.")
    ],
    target: OutOption,
    size: SizeOption = 64,
    seed: SeedOption = 0,
) -> None:
    """Prepare your own pictures; captions from metadata.csv/jsonl, .txt files or folder names."""
    from mmprod.data.folder import prepare_folder

    prepare_folder(source, target, size=size, seed=seed)
    _describe(out, target)


@command(prepare, "emoji")
def emoji(
    out: Output,
    target: OutOption = Path("data/emoji"),
    size: SizeOption = 64,
    seed: SeedOption = 0,
    styles: Annotated[
        str, typer.Option(metavar="STYLE,...", help="Drawing styles; all if not given.")
    ] = "",
) -> None:
    """Emoji pictures with their names, from npm packages; needs npm and a network."""
    from mmprod.data.emoji import prepare_emoji
    from mmprod.data.emoji_packages import STYLES

    prepare_emoji(target, size=size, seed=seed, styles=choices(styles) or tuple(STYLES))
    _describe(out, target)


@command(app, "stats")
def stats(out: Output, data: DataArg) -> None:
    """Sizes, captions and attributes of a prepared data set."""
    _describe(out, data)


@command(app, "verify")
def verify(out: Output, data: DataArg) -> None:
    """Check every file against the manifest; exit 4 names the first that differs."""
    from mmprod.data.store import verify_data

    manifest = verify_data(data)
    files = manifest["files"]
    size = sum(entry["bytes"] for entry in files)
    text = f"ok: {len(files)} files, {megabytes(size)}"
    out.result({"data": data, "files": len(files), "bytes": size}, Fields("", {shown(data): text}))


def _describe(out: Output, root: Path) -> None:
    from mmprod.data.store import data_fingerprint, open_split, read_manifest

    manifest = read_manifest(root)
    counts = {name: split["count"] for name, split in manifest["splits"].items()}
    sampled = _sampled(open_split(root, next(iter(counts))))
    data: dict[str, Any] = {
        "data": root,
        "source": manifest["source"],
        "size": manifest["size"],
        "seed": manifest["seed"],
        "splits": counts,
        "skipped": len(manifest["skipped"]),
        "bytes": sum(entry["bytes"] for entry in manifest["files"]),
        "fingerprint": data_fingerprint(root),
        **sampled,
    }
    fields = {
        "folder": shown(root),
        "source": f"{data['source']}, {data['size']} x {data['size']} pixels",
        "pictures": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        "left out": f"{data['skipped']} unreadable files" if data["skipped"] else "none",
        "on disk": megabytes(data["bytes"]),
        "example": sampled["example"] or "no captions",
    }
    rows = [(name, _most(shares)) for name, shares in sampled["attributes"].items()]
    out.result(data, Fields("", fields), *([Table("", ("attribute", "values"), rows)] * bool(rows)))


def _most(shares: dict[str, float]) -> str:
    """The most frequent values in a line; all of them are in the JSON."""
    shown_ones = [f"{value} {share:.0%}" for value, share in list(shares.items())[:STATS_VALUES]]
    more = len(shares) - len(shown_ones)
    return ", ".join(shown_ones) + (f", and {more:,} more" if more else "")


def _sampled(split: Split) -> dict[str, Any]:
    """An example caption, and shares of attribute values over pictures spread evenly in a split
    (which may be in order of some attribute).
    """
    import numpy as np

    from mmprod.data.attributes import LANGUAGES

    count = min(len(split), STATS_SAMPLES)
    indices = np.arange(count) * len(split) // max(count, 1)
    counts: dict[str, Counter[str]] = {}
    for attributes in split.attributes(indices):
        for name, value in attributes.items():
            counts.setdefault(name, Counter())[value] += 1
    shares = {
        name: {value: count / counter.total() for value, count in counter.most_common()}
        for name, counter in counts.items()
    }
    return {"example": next(split.all_captions(LANGUAGES), ""), "attributes": shares}
