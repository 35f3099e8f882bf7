"""`mmprod generate` and `mmprod caption`: pictures from words, words from pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import Seed, SourceArg
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.paths import check_file_target
from mmprod.cli.source import Backend, open_source
from mmprod.errors import ConfigError
from mmprod.manifest import atomic_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

SHOWN_SIDE = 128
"""Pixels per side of a picture in the grid: small pictures are enlarged, pixel by pixel."""
GAP = 4

BackendOption = Annotated[
    Backend | None,
    typer.Option(help="torch for a run, ort for a bundle; chosen by itself.", show_default=False),
]
PrecisionOption = Annotated[str, typer.Option(help="Which graphs of a bundle: fp32, fp16.")]


def generate(
    out: Output,
    source: SourceArg,
    captions: Annotated[
        list[str], typer.Argument(metavar="CAPTION...", help="What the pictures show.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures each.")] = 4,
    seed: Seed = 0,
    target: Annotated[
        Path, typer.Option("--out", metavar="PNG", help="Grid to write, a row per caption.")
    ] = Path("generated.png"),
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Draw pictures for captions."""
    from mmprod.sampling import generate_images

    check_file_target(target)
    opened = open_source(source, backend, precision)
    wanted = [caption for caption in captions for _ in range(count)]
    runner = opened.runner("text_to_image")
    try:
        pictures = generate_images(runner, opened.tokenizer, wanted, seed)
        executed = runner.backend
    finally:
        runner.close()
    _write_grid(pictures, count, target)
    data = {"pictures": len(pictures), "captions": captions, "seed": seed, "file": target}
    text = f"{len(pictures)} pictures: {shown(target)} (a row per caption; {executed})"
    out.result({**data, "backend": executed}, Text(text))


def caption(
    out: Output,
    source: SourceArg,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to describe.")],
    seed: Seed = 0,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Describe pictures in words."""
    import numpy as np

    from mmprod.sampling import caption_images

    opened = open_source(source, backend, precision)
    pictures = np.stack([read_picture(path, opened.dims.image_size) for path in images])
    runner = opened.runner("image_to_text")
    try:
        texts = caption_images(runner, opened.tokenizer, pictures, seed)
        executed = runner.backend
    finally:
        runner.close()
    rows = [(shown(path), text) for path, text in zip(images, texts, strict=True)]
    found = [{"image": path, "caption": text} for path, text in zip(images, texts, strict=True)]
    data: dict[str, Any] = {"captions": found, "seed": seed, "backend": executed}
    out.result(data, Table("", ("picture", "caption"), rows))


def read_picture(path: Path, size: int) -> Pixels:
    """A picture file as (size, size, 3) uint8, prepared as training pictures are.

    Raises ConfigError for a file that is no picture or too large to open.
    """
    from mmprod.data.pictures import UnusablePicture, bombs_are_errors
    from mmprod.data.pictures import read_picture as read

    try:
        with bombs_are_errors():
            return read(path, size)
    except UnusablePicture as error:
        hint = "give a PNG, JPEG or WebP file"
        raise ConfigError(f"{path} is of no use: {error}", hint=hint) from error


def _write_grid(pictures: Pixels, columns: int, path: Path) -> None:
    """pictures (B, H, W, 3) uint8 -> one PNG, `columns` wide, on a white ground."""
    import numpy as np
    from PIL import Image

    zoom = max(1, SHOWN_SIDE // pictures.shape[1])
    large = pictures.repeat(zoom, 1).repeat(zoom, 2)
    height, width = large.shape[1] + GAP, large.shape[2] + GAP
    rows = math.ceil(len(large) / columns)
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), 255, np.uint8)
    for index, picture in enumerate(large):
        y, x = GAP + index // columns * height, GAP + index % columns * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "png")
