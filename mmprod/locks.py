"""Locks that the system lets go of when a process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
"""What file systems say that know no locks, or none on folders (some network file systems)."""


def wait_for_lock(
    handle: int, *, wait_s: float, look_s: float, busy: Callable[[bool], None]
) -> OSError | None:
    """Take the exclusive lock of an open file or folder, looking every `look_s` seconds.

    busy(over): called once when another process has it, and with True, to raise, when it still has
    it after `wait_s` seconds. Returns the error of a file system that knows no locks, else None.
    """
    end, said = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            over = time.monotonic() > end
            if over or not said:
                busy(over)
                said = True
            time.sleep(look_s)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return error
        else:
            return None
