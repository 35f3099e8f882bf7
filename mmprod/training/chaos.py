"""Signals sent to oneself, by a seeded plan, to prove that a job survives them.

kill k of a plan is due when (k + 1/2) / kills of all steps are done: in the next save, evaluation,
step or start of a process, as the plan says, by SIGKILL or SIGTERM, on a rank drawn at random,
after a random part of the time that the phase takes. All of it is a function of (seed, k); how many
kills there were is read from files, so a job that any scheduler starts again goes on with the plan.
Before a signal goes out its record is on disk: <folder>/kill-NNNN.json.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmprod.config.schema import Config
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import read_json, write_json
from mmprod.training.distributed import World, only_main

logger = logging.getLogger(__name__)

Place = Literal["start", "step", "save", "evaluation"]

PLAN = "plan.json"
PHASES: dict[str, Place] = {
    "start": "start", "step": "step", "save": "save", "evaluation": "evaluation",
}  # fmt: skip
FIRST_S = {"start": 3.0, "step": 0.1, "save": 0.1, "evaluation": 0.3}
"""taken as the length of a phase that this process has not seen yet"""


@dataclass(frozen=True)
class ChaosPlan:
    """`kills` signals, drawn from `seed`."""

    kills: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> ChaosPlan:
        """`kills=20,seed=1`. Raises ConfigError."""
        hint = "--chaos kills=20,seed=1"
        values: dict[str, int] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            if name not in ("kills", "seed") or not number.isdigit() or name in values:
                raise ConfigError(f"--chaos {text!r}: {part!r} is not understood", hint=hint)
            values[name] = int(number)
        if not 1 <= values.get("kills", 0) <= 9999:
            raise ConfigError(f"--chaos {text!r} names no number of kills", hint=hint)
        return cls(**values)

    def kill(self, number: int, ranks: int) -> Kill:
        """The `number`-th one (from 0). Every other one is in a save; half of both kinds are
        SIGKILL.
        """
        chance = random.Random(f"{self.seed}/{number}")
        place: Place = "save"
        if number % 2:
            place = chance.choice(["step", "step", "evaluation", "start"])
        return Kill(
            number=number,
            place=place,
            signal="SIGKILL" if (number // 2) % 2 == 0 else "SIGTERM",
            rank=chance.randrange(ranks),
            due=(number + 0.5) / self.kills,
            moment=chance.random(),
        )


@dataclass(frozen=True)
class Kill:
    """One planned signal. `due`: share of all steps; `moment`: share of the phase's usual time."""

    number: int
    place: Place
    signal: Literal["SIGKILL", "SIGTERM"]
    rank: int
    due: float
    moment: float


def chaos_folder(root: Path) -> Path:
    """Where the plan, the records and the uninterrupted run of a chaos run lie: beside it."""
    return root.with_name(f"{root.name}.chaos")


def open_chaos(
    plan: ChaosPlan | None, config: Config, root: Path, stages: Sequence[str], world: World
) -> Chaos | None:
    """The plan on this rank, None without one. Collective. Raises ConfigError where `root` was
    trained without it, or with another.
    """
    if plan is None:
        return None
    folder = chaos_folder(root)
    only_main(world, lambda: _claim(plan, folder, root))
    steps = {name: getattr(config, f"{name}_train").steps for name in stages}
    return Chaos(plan, folder, world, steps)


def _claim(plan: ChaosPlan, folder: Path, root: Path) -> None:
    path = folder / PLAN
    if not path.is_file() and root.exists():
        raise ConfigError(
            f"{root} was not begun with --chaos, which would kill what trains in it",
            hint="choose another --out",
        )
    if not path.is_file():
        write_json(path, asdict(plan))
    elif read_json(path) != asdict(plan):
        raise ConfigError(
            f"{folder} belongs to another plan: {read_json(path)}",
            hint="give the same --chaos, or another --out",
        )


def kill_records(folder: Path) -> list[dict[str, Any]]:
    """What was sent so far, in order. A record that was being written counts too: its name says
    which kill it is, the rest is unknown.
    """
    return [_record(path) for path in sorted(folder.glob("kill-*.json"))]


def _record(path: Path) -> dict[str, Any]:
    unknown = dict.fromkeys(("place", "signal", "rank", "phase"), "unknown")
    number = {"number": int(path.stem.removeprefix("kill-"))}
    try:
        return {**unknown, **read_json(path), **number}
    except (IntegrityError, TypeError) as error:
        logger.warning("%s is not whole and counts as sent: %s", path, error)
        return {**unknown, **number}


class Chaos:
    """The plan on this rank, in this process. `steps`: optimizer steps of each stage."""

    def __init__(
        self, plan: ChaosPlan, folder: Path, world: World, steps: Mapping[str, int]
    ) -> None:
        self._folder, self._world, self._steps = folder, world, dict(steps)
        number = only_main(world, lambda: len(kill_records(folder)))
        self._kill = plan.kill(number, world.size) if number < plan.kills else None
        self._before = 0
        self._durations: dict[str, float] = {}
        self._entered: dict[str, float] = {}
        self._pending: tuple[threading.Timer, str, int] | None = None
        self._lock = threading.Lock()

    def begin_stage(self, stage: str) -> None:
        """The stage is prepared."""
        before = list(self._steps)[: list(self._steps).index(stage)]
        self._before = sum(self._steps[name] for name in before)
        if "start" in self._entered and "start" not in self._durations:
            self.leave("start")

    def enter(self, phase: str, step: int) -> None:
        """The process enters a phase after `step` steps of the stage."""
        place = PHASES.get(phase)
        self._entered[phase] = time.monotonic()
        kill = self._kill
        if kill is None or place != kill.place or self._pending is not None:
            return
        share = (self._before + step) / sum(self._steps.values())
        if kill.rank != self._world.rank or (place != "start" and share < kill.due):
            return
        delay_s = kill.moment * self._durations.get(phase, FIRST_S[phase])
        timer = threading.Timer(delay_s, self._strike, (phase, step))
        timer.daemon = True
        self._pending = timer, phase, step
        timer.start()

    def leave(self, phase: str) -> None:
        """The phase ends; what is pending strikes now, while it still lasts."""
        self._durations[phase] = time.monotonic() - self._entered[phase]
        if self._pending is not None and self._pending[1] == phase:
            timer, _, step = self._pending
            timer.cancel()
            self._strike(phase, step)
            self._pending = None

    def _strike(self, phase: str, step: int) -> None:
        with self._lock:
            kill, self._kill = self._kill, None
            if kill is None:
                return
            record = asdict(kill) | {
                "phase": phase,
                "step": step,
                "after_s": round(time.monotonic() - self._entered[phase], 4),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            path = self._folder / f"kill-{kill.number:04d}.json"
            with path.open("x") as stream:
                json.dump(record, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.kill(os.getpid(), signal.Signals[kill.signal])
