"""Names of pictures in a pack: plain file names, by rules that no library's tables can move."""

from __future__ import annotations

from mmprod.errors import ConfigError

MAX_NAME_BYTES = 255
NOT_IN_NAMES = frozenset(
    '/\\:*?"<>|'
    + "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F)))
    + "".join(map(chr, (*range(0x2028, 0x202F), *range(0x2066, 0x206A))))
)
"""Separators and what file systems keep for themselves; controls (C0, delete, C1); separators of
lines and paragraphs; controls of the direction of writing, with which a name looks like another.
"""


def check_name(name: str) -> None:
    """Raises ConfigError for what no picture in a file may be called."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:  # half a surrogate pair
        size = 0
    if not 1 <= size <= MAX_NAME_BYTES or set(name) & NOT_IN_NAMES or name.strip(" .") != name:
        raise ConfigError(
            f"{name!r} is no plain file name",
            hint=f"1 to {MAX_NAME_BYTES} bytes, no separators, no control characters",
        )
