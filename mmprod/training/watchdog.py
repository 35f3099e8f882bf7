"""A rank that makes no progress says where it stands and ends, instead of waiting for hours.

A thread on every rank looks at the time since the last beat of the loop. When it is over the limit
of the phase, every rank writes the Python stacks of its threads to <stage>/hang-rank-N.txt, rank 0
logs one line that says which ranks are where, and all processes end: with 75 (start it again) when
this process has saved a checkpoint since it started, else with 3, since starting again would lead
to the same place without end.

The thread needs the interpreter lock. Should the hanging code keep it, a timer of the interpreter
itself (faulthandler, in C) writes the stacks to stderr and ends the process with 1.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mmprod.errors import EnvironmentMissing, Preempted
from mmprod.training.distributed import World
from mmprod.training.lifeline import say_goodbye
from mmprod.training.store import connect

logger = logging.getLogger(__name__)

ALLOWANCE = {"step": 1, "first step": 4, "restore": 4, "save": 4, "evaluation": 8}
"""limit of each phase in units of `hang_s`"""
KEY = "mmprod/hang"
GATHER_S = 5.0
"""how long rank 0 waits for the other ranks' word, and they for its line"""
BACKSTOP = 2
"""the timer in C, in units of the phase's limit"""


class Watchdog:
    """While entered it watches; `limit_s` = 0: it does nothing."""

    def __init__(self, world: World, folder: Path, limit_s: float) -> None:
        self._world, self._folder, self._limit_s = world, folder, limit_s
        self.saved = False
        """set by the loop when a checkpoint is complete"""
        self._phase, self._step, self._since = "restore", 0, time.monotonic()
        self._main = threading.get_ident()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._limit_s:
            self._store = connect(self._world)
            self._thread = threading.Thread(target=self._watch, name="mmprod watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, phase: str, step: int) -> None:
        """The loop entered `phase` after `step` steps."""
        self._phase, self._step, self._since = phase, step, time.monotonic()

    def _watch(self) -> None:
        period = min(10.0, self._limit_s / 10)
        while not self._done.wait(period):
            limit = self._limit_s * ALLOWANCE[self._phase]
            # Armed anew each time: only an interpreter that no thread can enter lets it run out.
            faulthandler.dump_traceback_later(BACKSTOP * limit + period, exit=True, file=2)
            waited = time.monotonic() - self._since
            if waited > limit or self._told():
                self._end(waited)

    def _told(self) -> bool:
        try:
            return self._store is not None and bool(self._store.check([KEY]))
        except RuntimeError as error:  # its host is gone: the next exchange will say so
            logger.debug("no word from the store: %s", error)
            return False

    def _end(self, waited: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        rank = self._world.rank
        place = where(sys._current_frames().get(self._main))
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"hang-rank-{rank}.txt").open("w") as stream:
            stream.write(
                f"rank {rank} on {socket.gethostname()}, process {os.getpid()}: {waited:.0f} s in "
                f"{self._phase} after step {self._step}, in {place}\n\n"
            )
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.flush()
            os.fsync(stream.fileno())
        code = Preempted.exit_code if self.saved else EnvironmentMissing.exit_code
        again = "start it again" if self.saved else "nothing was saved since it started"
        places = self._places(place)
        if self._world.is_main:
            logger.error(
                "no progress for %.0f s in %s after step %d: %s; stacks in %s; ending with %d (%s)",
                waited, self._phase, self._step, summary(places),
                self._folder / "hang-rank-*.txt", code, again,
            )  # fmt: skip
            sys.stderr.flush()
        self._let_others_end()
        say_goodbye(code, "no progress")
        os._exit(code)

    def _places(self, mine: str) -> dict[int, str]:
        """Where each rank is, as far as they say in time; on ranks other than 0 only tell."""
        if self._store is None:
            return {self._world.rank: mine}
        try:
            self._store.set(f"{KEY}/{self._world.rank}", mine)
            self._store.set(KEY, "1")
            if not self._world.is_main:
                return {}
            keys = {rank: f"{KEY}/{rank}" for rank in range(self._world.size)}
            self._until(lambda: self._store.check(list(keys.values())))
            return {
                rank: self._store.get(key).decode()
                for rank, key in keys.items()
                if self._store.check([key])
            }
        except RuntimeError as error:
            logger.debug("the store is gone: %s", error)
            return {self._world.rank: mine}

    def _let_others_end(self) -> None:
        """The first process that ends makes a launcher end the others, so rank 0 speaks first."""
        if self._store is None:
            return
        try:
            if self._world.is_main:
                self._store.set(f"{KEY}/said", "1")
            else:
                self._until(lambda: self._store.check([f"{KEY}/said"]))
        except RuntimeError as error:
            logger.debug("the store is gone: %s", error)

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + GATHER_S + min(10.0, self._limit_s / 10)
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)


def where(frame: FrameType | None) -> str:
    """The innermost call: `sleep_forever (task.py:12)`."""
    if frame is None:
        return "no Python code"
    code = frame.f_code
    return f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"


def summary(places: dict[int, str]) -> str:
    """`rank 1 in f (a.py:3); ranks 0 2 3 in g (b.py:4)`: the smallest group first, it is the cause
    more often than not.
    """
    groups: dict[str, list[int]] = {}
    for rank, place in sorted(places.items()):
        groups.setdefault(place, []).append(rank)
    parts = []
    for place, ranks in sorted(groups.items(), key=lambda group: len(group[1])):
        shown = " ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
        parts.append(f"rank{'s' if len(ranks) > 1 else ''} {shown} in {place}")
    return "; ".join(parts)
