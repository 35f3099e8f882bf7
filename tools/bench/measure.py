"""Time and memory of several ways to do the same work.

Time: in turn (A B C A B C ...) in one process, the best of several rounds. With one thread it is
the processor time of the process, so that other programs disturb it little; with more it is the
wall clock, and the machine should be idle. Memory: each way in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Work = Callable[[], object]
MIB = 1024.0


@dataclass(frozen=True)
class Row:
    """One line of the table. `times`: how many times as much the peer needs; `bar`: the text of the
    aim, empty for none; `met`: whether it is reached, None without one.
    """

    what: str
    ours: float
    peer: str
    theirs: float
    unit: str
    bar: str = ""
    met: bool | None = None

    @property
    def times(self) -> float:
        return self.theirs / self.ours


def faster(what: str, ours: float, peer: str, theirs: float, at_least: float | None = None) -> Row:
    """A row of times (seconds in, milliseconds in the table); ours should be `at_least` times as
    fast.
    """
    bar = "" if at_least is None else f">= {at_least:g} x"
    met = None if at_least is None else theirs >= at_least * ours
    return Row(what, 1e3 * ours, peer, 1e3 * theirs, "ms", bar, met)


def best_times(
    works: Mapping[str, Work], rounds: int, of: Callable[[list[float]], float] = min
) -> dict[str, float]:
    """Best seconds of each (or another figure `of` its rounds), after one warm-up round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if number:
                found[name].append(clock() - start)
    return {name: of(times) for name, times in found.items()}


def peak_above_baseline(work: Work, repeats: int = 3) -> float:
    """MiB by which the resident memory of this process rises at most while `work` runs. Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    for _ in range(repeats):
        work()
    return (_status("VmHWM") - before) / MIB


def memory_of(name: str) -> float:
    """`peak_above_baseline` of the quantizer `name`, measured in a new process."""
    command = [sys.executable, "-m", "tools.bench", "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _status(key: str) -> float:
    """A figure of /proc/self/status in KiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {key}")
    return float(found.group(1))
