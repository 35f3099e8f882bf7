"""Where figures and pictures of training go beside metrics.jsonl: TensorBoard, trackers.

Each sink runs in a thread of its own: a slow network does not slow training down, and a sink that
fails says so once and never ends it. Which server a tracker speaks to is the business of its own
environment variables; no sink is opened that was not asked for by name.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mmprod.errors import EnvironmentMissing
from mmprod.training import trackers
from mmprod.training.telemetry import Monitoring

logger = logging.getLogger(__name__)

WAITING = 1000
"""lines that wait for a slow sink, at most; further ones are left out"""
CLOSING_S = 30.0
"""how long the end of training waits for a sink"""
GIVES_UP = 5
"""lines in a row that fail, after which a sink is left alone"""


class Sink(Protocol):
    """A place for figures. Its methods may fail in any way (see `Background`)."""

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """One line of metrics.jsonl."""

    def picture(self, step: int, path: Path) -> None:
        """Samples of an evaluation, a PNG file."""

    def close(self) -> None:
        """Everything is written when this returns."""


def check_sinks(to: Sequence[str]) -> None:
    """Raise EnvironmentMissing for a sink that cannot be opened here: a package that is not
    installed, a tracker without a key or a place. Asks no network.
    """
    for name in to:
        if not _has(name):
            extra = "train" if name == "tensorboard" else name
            raise EnvironmentMissing(
                f"log.to names {name}, which is not installed",
                hint=f"pip install mmprod[{extra}], or leave it out of log.to",
            )
    if "mlflow" in to and "MLFLOW_TRACKING_URI" not in os.environ and not _has("sqlalchemy"):
        raise EnvironmentMissing(
            "log.to names mlflow, and there is neither a server nor MLflow's own data base",
            hint="set MLFLOW_TRACKING_URI to a server, or pip install mlflow for a local file",
        )
    if "wandb" in to and not trackers.wandb_is_ready():
        raise EnvironmentMissing(
            "log.to names wandb, which has no API key here",
            hint="wandb login, or WANDB_API_KEY; or WANDB_MODE=offline and wandb sync afterwards",
        )


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def open_sinks(monitoring: Monitoring, folder: Path, from_step: int) -> list[Background]:
    """The sinks of a stage folder, each in a thread that opens it. from_step: what was done before
    that step stays, later figures will come again.
    """
    opened: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: trackers.TensorBoard(folder, from_step),
        "wandb": lambda: trackers.Wandb(folder, monitoring),
        "mlflow": lambda: trackers.Mlflow(folder, monitoring),
    }
    return [Background(name, opened[name]) for name in dict.fromkeys(monitoring.to)]


class Background:
    """A sink in a thread. Its calls return at once and raise nothing."""

    def __init__(self, name: str, open_: Callable[[], Sink]) -> None:
        self._name, self._open = name, open_
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(WAITING)
        self._warned = False
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        kept = dict(figures)
        self._put(lambda sink: sink.figures(kind, step, kept))

    def picture(self, step: int, path: Path) -> None:
        self._put(lambda sink: sink.picture(step, path))

    def close(self) -> None:
        """Wait for what is still to be written, but not for ever."""
        if self._off.is_set():
            return
        try:
            self._queue.put(None, timeout=CLOSING_S)
        except queue.Full:
            self._warn("did not take what was still waiting")
            return
        self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            self._warn(f"has not finished in {CLOSING_S:g} s and is left behind")

    def _put(self, work: Callable[[Sink], None]) -> None:
        if self._off.is_set():
            return
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._warn("is too slow; figures are left out there")

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - a tracker fails in its own ways; training goes on
            self._warn(f"is switched off: {_words(error)}")
        finally:
            self._off.set()

    def _work(self) -> None:
        sink, failed = self._open(), 0
        while (work := self._queue.get()) is not None:
            try:
                work(sink)
                failed = 0
            except Exception as error:
                failed += 1
                self._warn(f"does not take a line: {_words(error)}")
                if failed == GIVES_UP:
                    raise
        sink.close()

    def _warn(self, what: str) -> None:
        """Once: a network that is down would fill the log."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s %s (training goes on; metrics.jsonl has every line)", self._name, what
            )


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
