"""CRC-32C (Castagnoli; RFC 3720, appendix B.4). The only file that imports google_crc32c."""

from __future__ import annotations

import google_crc32c


def crc32c(data: bytes) -> int:
    """The checksum of `data`, in [0, 2^32)."""
    return int(google_crc32c.value(data))
