"""SVG text to pixels, by `resvg` (MIT or Apache-2.0):

No browser, no system fonts, same pixels everywhere.
"""

from __future__ import annotations

import functools
import io
from importlib import import_module
from typing import Any

from PIL import Image

from mmprod.errors import EnvironmentMissing

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


class UnusableDrawing(Exception):
    """SVG that cannot be drawn; the message says why."""


def render_svg(body: str, view_box: str, width: int) -> Image.Image:
    """Draw the elements `body`, seen through `view_box`, on width x width transparent pixels: RGBA.

    Raises UnusableDrawing for malformed SVG, EnvironmentMissing without resvg.
    """
    head = f'<svg {_NAMESPACES} width="{width}" height="{width}" viewBox="{view_box}">'
    try:
        png = resvg().svg_to_bytes(svg_string=f"{head}{body}</svg>", skip_system_fonts=True)
    except ValueError as error:
        raise UnusableDrawing(str(error)) from error
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGBA")


@functools.cache
def resvg() -> Any:
    """The resvg module. Raises EnvironmentMissing."""
    return need("resvg_py")


def need(module: str) -> Any:
    """Import an optional module of the extra `data`. Raises EnvironmentMissing with the cure."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EnvironmentMissing(
            f"drawing needs {module.replace('_', '-')}", hint="pip install 'mmprod[data]'"
        ) from error
