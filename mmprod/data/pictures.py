"""Any picture file to a square of RGB pixels, with hostile files kept out.

Only common raster formats are tried (never those whose decoder runs another program), and a
picture's declared size is checked before any pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 80_000_000
MAX_BYTES = 256 * 2**20
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class UnusablePicture(Exception):
    """A file that is not a picture we can or want to decode; the message says why."""


def read_picture(path: Path, size: int) -> NDArray[np.uint8]:
    """Decode one file: (size, size, 3) uint8 RGB.

    Turned as its EXIF orientation says, transparency over white, first frame of an animation,
    shorter side scaled to `size`, centre cropped. Raises UnusablePicture. Run it inside
    `bombs_are_errors()`.
    """

    def fitted(image: Image.Image) -> NDArray[np.uint8]:
        image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decode at a fraction of the size
        return square(ImageOps.exif_transpose(image), size)

    return _decode(path, fitted)


def read_whole(path: Path) -> NDArray[np.uint8]:
    """Decode one file as it is: (H, W, 3) uint8 RGB, otherwise as `read_picture` does."""
    return _decode(
        path, lambda image: np.asarray(_over_white(ImageOps.exif_transpose(image)), np.uint8)
    )


def _decode(path: Path, take: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """`take` of a picture whose declared size was checked. Raises UnusablePicture."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnusablePicture(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusablePicture(
                    f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels"
                )
            return take(image)
    except UnusablePicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusablePicture(f"too many pixels: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        # What Pillow raises for broken files differs by format; these are all of its kinds.
        raise UnusablePicture(f"cannot be decoded: {error}") from error


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Flatten over white, scale the shorter side to `size`, crop the centre:

    (size, size, 3) uint8.
    """
    fitted = ImageOps.fit(_over_white(image), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    """RGB without transparency; composited before any scaling, so that no dark fringe appears."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB")


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Within the block Pillow raises, instead of warning, for a picture of suspiciously many
    pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
