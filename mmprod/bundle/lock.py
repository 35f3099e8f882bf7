"""One writer at a time in a bundle: the lock lies on the folder itself, so no file is added.

The system lets go of it when the process ends, however it ends. Where a file system knows no locks
on folders (some network file systems) a warning says that nothing is guarded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mmprod.errors import EnvironmentMissing

logger = logging.getLogger(__name__)

WAIT_S, LOOK_S = 20.0, 0.05
"""how long another writer may take to finish, and how often is looked"""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})


@contextlib.contextmanager
def lock_folder(root: Path) -> Iterator[None]:
    """Nobody else writes the bundle at `root` within it. Raises EnvironmentMissing when another
    process does, after `WAIT_S` seconds.
    """
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _take(handle, root)
        yield
    finally:
        os.close(handle)


def _take(handle: int, root: Path) -> None:
    end, said = time.monotonic() + WAIT_S, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise EnvironmentMissing(
                    f"another process has been writing to {root} for {WAIT_S:.0f} s",
                    hint="let one command at a time write to a bundle: run this one again",
                ) from error
            if not said:
                logger.info("waiting for another process that writes to %s", root)
                said = True
            time.sleep(LOOK_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "%s: this file system knows no locks on folders (%s): see to it that no second "
                "command writes to the bundle at the same time",
                *(root, error.strerror),
            )
            return
        else:
            return
