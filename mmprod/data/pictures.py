"""Any picture file to a square of RGB pixels, with hostile files kept out.

Only common raster formats are tried (never those whose decoder runs another program), and a
picture's declared size is checked before any pixel is decoded.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 80_000_000
MAX_BYTES = 256 * 2**20
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
Source = Path | bytes
"""A picture file, or its content."""
_DEEP = re.compile(r"'(L|LA|I|RGB|RGBA|RGBX|RGBa|CMYK);16")
"""how Pillow's decoders name samples of 16 bits"""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""by the orientation of TIFF 6.0 and EXIF, which says how the picture was turned"""


class UnusablePicture(Exception):
    """A file that is not a picture we can or want to decode; the message says why."""


@dataclass(frozen=True)
class Bounds:
    """What is decoded at all; all of it is known before a pixel is. Sides in pixels."""

    formats: tuple[str, ...] = _FORMATS
    pixels: int = MAX_PIXELS
    shortest_side: int = 1
    longest_side: int = MAX_PIXELS

    def check(self, width: int, height: int) -> None:
        """Raises UnusablePicture."""
        if width * height > self.pixels:
            raise UnusablePicture(f"{width} x {height} is over {self.pixels:,} pixels")
        if min(width, height) < self.shortest_side or max(width, height) > self.longest_side:
            raise UnusablePicture(
                f"{width} x {height}: sides have {self.shortest_side} to {self.longest_side} pixels"
            )


ANY = Bounds()


@dataclass(frozen=True)
class Whole:
    """A picture as RGB, pixels (H, W, 3) uint8, and what of it that cannot hold."""

    pixels: NDArray[np.uint8]
    lost: tuple[str, ...]


def read_picture(source: Source, size: int, bounds: Bounds = ANY) -> NDArray[np.uint8]:
    """Decode one file: (size, size, 3) uint8 RGB.

    Turned as its orientation tag says, transparency over white, first frame of an animation, of 16
    bits the upper 8, shorter side scaled to `size`, centre cropped. Raises UnusablePicture. Run it
    inside `bombs_are_errors()`.
    """
    with _opened(source, bounds) as image:
        image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decode at a fraction of the size
        return square(_upright(image), size)


def read_mask(source: Source, size: int, bounds: Bounds = ANY) -> NDArray[np.bool_]:
    """Where a mask is white (size, size), cropped and scaled as `read_picture` does. White first,
    then scaled, so that no line is too thin to count.
    """
    white = read_whole(source, bounds).pixels.max(-1) > 127
    image = Image.fromarray(white.astype(np.float32))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BOX)) > 0


def read_whole(source: Source, bounds: Bounds = ANY) -> Whole:
    """Decode one file as it is, otherwise as `read_picture` does."""
    with _opened(source, bounds) as image:
        deep = _DEEP.search(str(getattr(image, "tile", ""))) is not None
        frames = getattr(image, "n_frames", 1)
        turned = _upright(image)
        lost = (
            f"all but the first of {frames} frames" if frames > 1 else "",
            "transparency (now over white)" if turned.has_transparency_data else "",
            "the lower 8 of 16 bits" if deep else "",
        )
        return Whole(np.asarray(_over_white(turned), np.uint8), tuple(filter(None, lost)))


@contextmanager
def _opened(source: Source, bounds: Bounds) -> Iterator[Image.Image]:
    """A picture whose declared size was checked; what is done to it may fail as Pillow fails.

    For a broken file Pillow raises what its decoders stumble over: OSError, SyntaxError, ValueError
    and also struct.error, zlib.error, TypeError, AttributeError, LookupError, ... There is no list
    of them, so here, at the one place where foreign bytes are decoded, everything counts.
    """
    try:
        given = io.BytesIO(source) if isinstance(source, bytes) else source
        if isinstance(given, Path) and given.stat().st_size > MAX_BYTES:
            raise UnusablePicture(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(given, formats=bounds.formats) as image:
            bounds.check(*image.size)
            yield image
    except UnusablePicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusablePicture(f"too many pixels: {error}") from error
    except Exception as error:
        what = str(error) or "no more is known"
        raise UnusablePicture(f"cannot be decoded: {type(error).__name__}: {what}") from error


def _upright(image: Image.Image) -> Image.Image:
    """The decoded picture, turned as its orientation tag says. No other metadata is interpreted."""
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Flatten over white, scale the shorter side to `size`, crop the centre:

    (size, size, 3) uint8.
    """
    fitted = ImageOps.fit(_over_white(image), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    """RGB without transparency; composited before any scaling, so that no dark fringe appears.

    Of 16-bit values the upper byte counts. Raises UnusablePicture for values without a range.
    """
    if image.mode in ("F", "I"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise UnusablePicture(
            f"its values are {kind}, of which nothing says what is black and what is white; save "
            "it with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        clear = image.info.get("transparency")
        return Image.fromarray(np.where(values == clear, np.uint8(255), grey)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB")


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Within the block Pillow raises, instead of warning, for a picture of suspiciously many
    pixels, and does not warn of damage in metadata, which is not used.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
