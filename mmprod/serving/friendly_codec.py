"""Friendly models of the codec: see `friendly`."""

from __future__ import annotations

import numpy as np

from mmprod.bitstream import Description, describe
from mmprod.bitstream.compressor import PORTABLE, Compressor
from mmprod.errors import MmprodError
from mmprod.parity.compare import PSNR_CAP
from mmprod.serving.friendly_pictures import as_pngs
from mmprod.serving.given import Given
from mmprod.serving.graph_model import Call
from mmprod.serving.kit import Kit, Made
from mmprod.serving.refusal import Refused, bad
from mmprod.serving.tensors import as_elements


def compress(kit: Kit, given: Given, call: Call) -> Made:
    """With the static prior: the file is the same, and can be read, on every machine."""
    pixels = given.whole("picture")
    made = _compressor(kit, call).compress([("", pixels)], "static")
    figures = (min(made.entries[0].psnr, PSNR_CAP), made.bits_per_pixel)
    psnr, rate = (np.array([figure], np.float32) for figure in figures)
    return Made({"file": as_elements([made.data]), "psnr": psnr, "bits_per_pixel": rate})


def decompress(kit: Kit, given: Given, call: Call) -> Made:
    """What the file says of itself is held against the limits before anything is made for it."""
    data = given.data("file")
    try:
        _check(kit, describe(data))
        pictures = _compressor(kit, call).decompress(data)
    except Refused:
        raise
    except MmprodError as error:
        raise bad(f"file: {error.message}") from error
    elements = [as_pngs(picture.pixels[None])[0] for picture in pictures]
    return Made({"pictures": as_elements(elements)})


def _check(kit: Kit, about: Description) -> None:
    if about.prior not in PORTABLE:
        raise bad(f"its prior {about.prior} can be read only where it was written")
    size = kit.dims.image_size  # of the window that a smaller picture takes, too
    pixels = sum(max(height, size) * max(width, size) for height, width in about.sizes)
    if pixels > kit.limits.pixels:
        raise bad(
            f"its pictures have {pixels} pixels, each counted as {size} x {size} at least; at most "
            f"{kit.limits.pixels} are taken"
        )


def _compressor(kit: Kit, call: Call) -> Compressor:
    return Compressor(kit.dims, kit.facts, lambda name: kit.runner(name, call))
