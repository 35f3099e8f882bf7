"""The allocator of the C library, told to keep what training frees.

A step on a processor asks for the same tens of megabytes as the step before. glibc gives large
blocks back to the system when they are freed, so the system clears and maps each page of them
again: some 50,000 pages a step of `small`, a tenth of its time. Kept, they are there for the next
step; the most that is held at a time stays as it was.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""parameters of mallopt (malloc.h)"""
NEVER, LARGE = -1, 1 << 30
USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to a gibibyte in this process, for good. True when it took effect:
    glibc only, and not where the environment already says how glibc allocates.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in USERS_OWN):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(TRIM_THRESHOLD, NEVER) and library.mallopt(MMAP_THRESHOLD, LARGE))
