"""Pictures in and out of files: reading one as training pictures are, finishing touches, and a grid
or single files to write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmprod.cli.paths import check_file_target, check_folder_target
from mmprod.errors import ConfigError
from mmprod.manifest import atomic_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

SHOWN_SIDE = 128
"""Pixels per side of a picture in the grid: small pictures are enlarged, pixel by pixel."""
GAP = 4

SeparateOption = Annotated[
    Path | None,
    typer.Option("--separate", metavar="DIR", help="Write each picture there, too."),
]
DenoiseOption = Annotated[bool, typer.Option("--denoise", help="Then take the median of 3 x 3.")]
SharpenOption = Annotated[bool, typer.Option("--sharpen", help="Then sharpen lightly.")]


@dataclass(frozen=True)
class Sheet:
    """Where pictures go, and what `finish` does to them: nothing, if not asked for."""

    grid: Path
    separate: Path | None
    denoise: bool = False
    sharpen: bool = False

    def check(self) -> None:
        """Refuse places where nothing can be written, before the work."""
        check_file_target(self.grid)
        if self.separate is not None:
            check_folder_target(self.separate)

    def finish(self, pictures: Pixels) -> Pixels:
        """Drawn pictures (B, H, W, 3) uint8 with the touches that were asked for."""
        import numpy as np

        return np.stack([self._finish(picture) for picture in pictures])

    def write(self, pictures: Pixels, columns: int) -> list[Path]:
        """Write the grid, `columns` wide, and the single files, whose paths are given back."""
        from PIL import Image

        _write_grid(pictures, columns, self.grid)
        if self.separate is None:
            return []
        digits = len(str(len(pictures) - 1))
        paths = [self.separate / f"{index:0{digits}}.png" for index in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            with atomic_path(path) as temporary:
                Image.fromarray(picture).save(temporary, "png")
        return paths

    def _finish(self, picture: Pixels) -> Pixels:
        import numpy as np
        from PIL import Image, ImageFilter

        image = Image.fromarray(picture)
        if self.denoise:
            image = image.filter(ImageFilter.MedianFilter(3))
        if self.sharpen:
            image = image.filter(ImageFilter.UnsharpMask(radius=1, percent=80, threshold=2))
        return np.asarray(image, np.uint8)


def read_picture(path: Path, size: int) -> Pixels:
    """A picture file as (size, size, 3) uint8, prepared as training pictures are.

    Raises ConfigError for a file that is no picture or too large to open.
    """
    from mmprod.data.pictures import read_picture as read

    with _of_use(path):
        return read(path, size)


def read_mask(path: Path, size: int) -> npt.NDArray[np.bool_]:
    """`data.pictures.read_mask`. Raises ConfigError as `read_picture` does."""
    from mmprod.data.pictures import read_mask as read

    with _of_use(path):
        return read(path, size)


@contextmanager
def _of_use(path: Path) -> Iterator[None]:
    """A file that is no picture, or too large to open, is a ConfigError."""
    from mmprod.data.pictures import UnusablePicture, bombs_are_errors

    try:
        with bombs_are_errors():
            yield
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
