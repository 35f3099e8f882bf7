"""The allocator of the C library, told to keep what training frees.

A step on a processor asks for the same tens of megabytes as the step before. glibc gives large
blocks back to the system when they are freed, so the system clears and maps each page of them
again: some 50,000 pages a step of `small`, a tenth of its time. Kept, they are there for the next
step; the most that is held at a time stays as it was.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform

logger = logging.getLogger(__name__)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""parameters of mallopt (malloc.h)"""
NEVER = -1
SIZES = (1 << 30, 32 << 20)
"""blocks up to here are kept; before 2.35 glibc takes no more than 32 MiB"""
USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed blocks in this process, for good. True when it took effect: glibc only, and not
    where the environment already says how glibc allocates. (An allocator loaded in its place goes
    its own way.)
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in USERS_OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The size first: setting either ends glibc's own adjusting, so the other alone would slow it.
    kept = any(mallopt(MMAP_THRESHOLD, size) for size in SIZES) and mallopt(TRIM_THRESHOLD, NEVER)
    if not kept:
        logger.warning("glibc refuses to keep freed memory: training may be slower than it could")
    return bool(kept)
