"""Signals before training listens: while its libraries are imported there is nothing to save."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mmprod.cli.launch import record_exit
from mmprod.errors import Preempted


@contextlib.contextmanager
def nothing_to_save() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the process with 75 at once: an exception inside an import could be
    taken for a broken library.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"asked to stop before anything began\n")
    record_exit(Preempted.exit_code)
    os._exit(Preempted.exit_code)
