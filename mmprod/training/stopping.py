"""SIGTERM and SIGUSR1, which schedulers send before they take a machine back, as a flag.

One `StopRequest` lasts as long as the whole training, so that no phase of it swallows a signal.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from mmprod.errors import Preempted
from mmprod.training.distributed import World, add_over_ranks

AGAIN = "start the same command again: it goes on from there"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """While entered, the two signals set `received`. Outside the main thread it listens to nothing.

    The handler only sets the flag: logging from a handler could re-enter a stream that is being
    written.
    """

    def __init__(self) -> None:
        self.received = ""
        """name of the signal that came, or empty"""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def raise_if_stopped(world: World, stop: StopRequest, state: str) -> None:
    """Raise Preempted on all ranks when any of them was asked to stop. Collective.

    `state`: what is saved at this point, for the message.
    """
    (asked,) = add_over_ranks(world, [float(bool(stop.received))])
    if asked:
        raise Preempted(f"asked to stop; {state}", hint=AGAIN)
