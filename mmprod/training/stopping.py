"""SIGTERM and SIGUSR1 of a scheduler, Ctrl-C of a person: heard in every phase, by any rank.

A Python handler runs only between two bytecodes of the main thread, never while that waits for
other ranks in C++. So the bytes that the interpreter writes for each signal (`set_wakeup_fd`) are
read by a thread, which tells the other ranks through the process group's key-value store. Rank 0,
which alone has phases that the others merely await (preparation, evaluation), looks there twice a
second and gives such a phase up; in all other phases the ranks agree at the next step or chunk.

A first SIGINT is a request like the others, with exit code 130; a second one, at least a second
later, ends the process at once.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from mmprod.errors import Interrupted, MmprodError, Preempted
from mmprod.training.distributed import World, add_over_ranks, only_main
from mmprod.training.lifeline import say_goodbye
from mmprod.training.store import connect

logger = logging.getLogger(__name__)
T = TypeVar("T")

AGAIN = "start the same command again: it goes on from there"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
KEY = "mmprod/stop"
LOOK_S = 0.5
"""how often rank 0 asks whether another rank was told to stop"""
SAME_S = 1.0
"""a second SIGINT within this time is the same Ctrl-C, from terminal and launcher"""

AGAIN_S = 10.0
"""an exception that a destructor swallowed is raised again after this time"""


class StopRequest:
    """While entered, the signals set `received`. Outside the main thread it listens to nothing."""

    def __init__(self) -> None:
        self.received = ""
        """name of the signal that came, "SIGTERM" or "SIGTERM on rank 3", or empty"""
        self._world: World | None = None
        self._store: Any = None
        self._previous: dict[signal.Signals, Any] = {}
        self._giving_up = ""
        self._raised = -AGAIN_S
        self._closed = threading.Event()
        self._first_interrupt: float | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._closed.clear()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="mmprod signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._previous:
            return
        self._closed.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._previous = {}
        os.write(self._writer, b"\0")  # wakes the thread
        self._thread.join()
        os.close(self._writer)
        os.close(self._reader)

    def share(self, world: World) -> None:
        """From now on tell and hear the other ranks too. The process group exists."""
        self._world, self._store = world, connect(world)

    @property
    def flags(self) -> list[float]:
        """For a sum over ranks: [asked by a scheduler, asked from a keyboard]."""
        keyboard = self.received.startswith("SIGINT")
        return [float(bool(self.received) and not keyboard), float(keyboard)]

    @contextlib.contextmanager
    def giving_up(self, state: str) -> Iterator[None]:
        """Within it a request raises Preempted (Interrupted) in the main thread, between two
        bytecodes. `state`: what is left behind, for the message.
        """
        try:
            yield from self._until_given_up(state)
        finally:  # again: a signal may have come just before the flag was cleared
            self._giving_up = ""

    def _until_given_up(self, state: str) -> Iterator[None]:
        try:
            self._giving_up, self._raised = state, -AGAIN_S
            self._give_up()
            yield
        except MmprodError:
            raise
        except Exception as error:
            self._giving_up = ""
            if self.received:  # e.g. worker processes that got the signal too
                raise stopped(state, self.flags) from error
            raise
        finally:
            self._giving_up = ""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        self._give_up()

    def _give_up(self) -> None:
        if self.received and self._giving_up and time.monotonic() - self._raised > AGAIN_S:
            self._raised = time.monotonic()
            raise stopped(self._giving_up, self.flags)

    def _listen(self) -> None:
        told = False
        while not self._closed.is_set():
            ready, _, _ = select.select([self._reader], [], [], LOOK_S)
            for number in os.read(self._reader, 64) if ready else b"":
                self._arrived(number)
            if self._closed.is_set():
                return
            if self._store is not None and not told:
                told = self._exchange(self._store)
            if self.received and self._giving_up:
                _thread.interrupt_main(signal.SIGUSR1)  # runs `_note` in the main thread
                time.sleep(0.05)

    def _arrived(self, number: int) -> None:
        if number not in SIGNALS:
            return
        self.received = self.received or signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_interrupt is None:
                self._first_interrupt = now
            elif now - self._first_interrupt > SAME_S:
                os.write(2, b"interrupted again: leaving at once\n")
                say_goodbye(Interrupted.exit_code, "interrupted")
                os._exit(Interrupted.exit_code)

    def _exchange(self, store: Any) -> bool:
        """Tell, or hear, that some rank was asked. True: nothing more to tell."""
        world = self._world
        try:
            if self.received:
                rank = world.rank if world is not None else 0
                store.set(KEY, f"{self.received} on rank {rank}")
                return True
            if world is not None and world.is_main and store.check([KEY]):
                self.received = store.get(KEY).decode()
                return True
        except RuntimeError as error:  # the store's host is gone, and soon this process
            logger.debug("no word from the store: %s", error)
            return True
        return False


def stopped(state: str, asked: list[float]) -> Preempted:
    """The error for a request; `asked`: `StopRequest.flags`, or their sum over ranks."""
    kind = Preempted if asked[0] else Interrupted
    return kind(f"asked to stop; {state}", hint=AGAIN)


def raise_if_stopped(world: World, stop: StopRequest, state: str) -> None:
    """Raise Preempted on all ranks when any of them was asked to stop. Collective.

    `state`: what is saved at this point, for the message.
    """
    asked = add_over_ranks(world, stop.flags)
    if any(asked):
        raise stopped(state, asked)


def only_main_until_stopped(
    world: World, stop: StopRequest, action: Callable[[], T], state: str
) -> T:
    """`only_main`, given up with Preempted on all ranks when any of them is asked to stop.

    `action` must leave nothing half-done that the next start would take for whole.
    """

    def here() -> T:
        with stop.giving_up(state):
            return action()

    return only_main(world, here)
