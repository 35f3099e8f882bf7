"""The contact sheet of a search: the query picture, if it is one, and then every hit in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.sheet import Sheet, read_picture
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.cli.source import Source
    from mmprod.search import Hit, Table

    Pixels = npt.NDArray[np.uint8]

COLUMNS = 5
"""pictures side by side"""
FILE, CODES, BLANK = "from the file", "as the codec remembers them", "white: taken out meanwhile"


def write_sheet(
    page: Sheet, source: Source, table: Table, first: Sequence[Pixels], hits: Sequence[Hit]
) -> dict[str, str]:
    """Write it, if there is a hit. By name, what is shown of a hit: FILE where that is still what
    was indexed, else CODES (so of a prepared data set, whose pictures are no files), or BLANK.
    """
    import numpy as np

    if not hits:
        return {}
    size = source.dims.image_size
    found = {hit.name: _from_file(Path(hit.name), hit.content, size) for hit in hits}
    sources = {name: FILE for name, pixels in found.items() if pixels is not None}
    lost = [name for name in found if name not in sources]
    if lost:
        codes = table.codes(lost)
        with closing(source.runner("codec_decode")) as decode:
            for name in lost:
                if name in codes:
                    found[name] = decode({"codes": codes[name][None]})["pixels"][0]
                sources[name] = CODES if name in codes else BLANK
    white = np.full((size, size, 3), 255, np.uint8)
    cells = [white if (pixels := found[hit.name]) is None else pixels for hit in hits]
    pictures = [*first, *cells]
    page.write(np.stack(pictures), min(COLUMNS, len(pictures)))
    return sources


def _from_file(path: Path, content: str, size: int) -> Pixels | None:
    """The picture, if it is still the one that was indexed."""
    from mmprod.manifest import sha256_file

    try:
        same = path.is_file() and sha256_file(path) == content
        return read_picture(path, size) if same else None
    except (OSError, ConfigError):
        return None
