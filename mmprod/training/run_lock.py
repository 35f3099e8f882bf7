"""One job at a time in a run folder: rank 0 holds a lock on RUN/.lock while it trains.

The system lets go of it when the process ends, however it ends. A job that was put back into a
queue may start while its predecessor is dying, so the lock is waited for a little. Where a file
system knows no locks (some network file systems) a warning says that nothing is guarded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mmprod.errors import EnvironmentMissing
from mmprod.locks import wait_for_lock
from mmprod.training.distributed import World
from mmprod.training.stopping import StopRequest, only_main_until_stopped

logger = logging.getLogger(__name__)

LOCK = ".lock"
WAIT_S, LOOK_S = 20.0, 0.25
"""how long a predecessor may take to die, and how often is looked"""


@contextlib.contextmanager
def lock_run(root: Path, world: World, stop: StopRequest) -> Iterator[None]:
    """Nobody else trains in `root` within it. Collective. Raises EnvironmentMissing when another
    job does, after `WAIT_S` seconds; Preempted when asked to stop meanwhile.
    """
    held: list[IO[str]] = []

    def take() -> None:
        held.append(_lock(root))

    try:
        only_main_until_stopped(world, stop, take, "nothing was begun")
        yield
    finally:
        for stream in held:
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(stream, fcntl.LOCK_UN)  # a forked child may have it open too
            stream.close()


def _lock(root: Path) -> IO[str]:
    """The lock's file, open; the lock goes with it."""
    path = root / LOCK
    stream = path.open("a+", encoding="utf-8")
    try:
        _wait(stream, root)
        try:
            stream.truncate(0)
            stream.write(json.dumps(_about()))
            stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        with contextlib.suppress(OSError):  # what could not be written is tried again
            stream.close()
        raise
    return stream


def _wait(stream: IO[str], root: Path) -> None:
    def busy(over: bool) -> None:
        owner = _owner(stream)
        if over:
            raise EnvironmentMissing(
                f"another job trains in {root}: {owner}",
                hint="wait for its end or stop it, or choose another --out",
            )
        logger.info("waiting for another job in %s to end: %s", root, owner)

    unknown = wait_for_lock(stream.fileno(), wait_s=WAIT_S, look_s=LOOK_S, busy=busy)
    if unknown is not None:
        logger.warning(
            "%s: this file system knows no locks (%s): see to it that no second job trains "
            "here at the same time",
            *(root, unknown.strerror),
        )


def _about() -> dict[str, str | int]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _owner(stream: IO[str]) -> str:
    """Who holds the lock, in words."""
    stream.seek(0)
    try:
        about = json.loads(stream.read())
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (ValueError, KeyError, TypeError):  # it is just writing its name
        return "it has not said its name yet"
