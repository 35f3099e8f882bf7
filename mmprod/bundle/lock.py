"""One writer at a time in a bundle: the lock lies on the folder itself, so no file is added.

The system lets go of it when the process ends, however it ends. Where a file system knows no locks
on folders (some network file systems) a warning says that nothing is guarded.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mmprod.errors import EnvironmentMissing
from mmprod.locks import wait_for_lock

logger = logging.getLogger(__name__)

WAIT_S, LOOK_S = 20.0, 0.05
"""how long another writer may take to finish, and how often is looked"""


@contextlib.contextmanager
def lock_folder(root: Path, what: str = "a bundle") -> Iterator[None]:
    """Nobody else writes the bundle, or `what` it is, at `root` within it. Raises
    EnvironmentMissing when another process does, after `WAIT_S` seconds.
    """
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _take(handle, root, what)
        yield
    finally:
        os.close(handle)


def _take(handle: int, root: Path, what: str) -> None:
    def busy(over: bool) -> None:
        if over:
            raise EnvironmentMissing(
                f"another process has been writing to {root} for {WAIT_S:.0f} s",
                hint=f"let one command at a time write to {what}: run this one again",
            )
        logger.info("waiting for another process that writes to %s", root)

    unknown = wait_for_lock(handle, wait_s=WAIT_S, look_s=LOOK_S, busy=busy)
    if unknown is not None:
        logger.warning(
            "%s: this file system knows no locks on folders (%s): see to it that no second "
            "command writes to %s at the same time",
            *(root, unknown.strerror, what),
        )
