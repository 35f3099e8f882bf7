"""Progress on stderr while a stage runs: bars on a terminal, one JSON line per event elsewhere.

Stages send small records of their own; each is translated into a `Tick` here, and drawn one way.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mmprod.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mmprod.engines.build import BuildEvent
    from mmprod.export.pipeline import ExportEvent
    from mmprod.parity.run import ParityEvent
    from mmprod.training.events import Event

E = TypeVar("E")

SHOWN_METRICS = 3
"""Metrics beside the bar; all of them are in metrics.jsonl."""


@dataclass(frozen=True)
class Tick:
    """`done` of `total` of a bar, words beside it, and the JSON line (None: too small to log)."""

    bar: str
    done: int
    total: int
    text: str
    line: Mapping[str, Any] | None


def training_tick(event: Event) -> Tick:
    """Optimizer steps of a stage."""
    text = _figures(event.metrics) if event.kind in ("log", "eval") else ""
    line = {"event": event.kind, "stage": event.stage, "step": event.step, "steps": event.steps}
    return Tick(event.stage, event.step, event.steps, text, line | event.metrics)


def export_tick(event: ExportEvent) -> Tick:
    """Parts traced, graphs written, references stored; a bar for each."""
    text = event.name if event.done < event.total else ""
    return Tick(event.stage, event.done, event.total, text, {"event": "export", **asdict(event)})


def parity_tick(event: ParityEvent) -> Tick:
    """Compared cases of a graph; the line comes with its verdicts."""
    if not event.rows:
        return Tick(event.graph, event.done, event.total, "", None)
    verdicts = [f"{row.subject}: {row.status}" for row in event.rows]
    line = {"event": "parity", "graph": event.graph, "cases": event.total, "verdicts": verdicts}
    counts = {s: sum(r.status == s for r in event.rows) for s in ("pass", "fail", "not run")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return Tick(event.graph, event.done, event.total, text, line)


def engine_tick(event: BuildEvent) -> Tick:
    """Engines that are there, built or failed."""
    text = f"{event.graph} {event.precision} {event.target} {event.kind}"
    return Tick("engines", event.done, event.total, text, {"event": "engine", **asdict(event)})


@contextmanager
def progress(out: Output, translate: Callable[[E], Tick]) -> Iterator[Callable[[E], None] | None]:
    """A receiver of a stage's events; None under -q."""
    if out.verbosity < 0:
        yield None
    elif not out.live:
        yield lambda event: _log(translate(event))
    else:
        with _bars() as drawn, _logs_above_the_bars():
            shown = _Bars(drawn)
            yield lambda event: shown.draw(translate(event))


class _Bars:
    """One bar per name, with the newest words beside it."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._tasks: dict[str, TaskID] = {}

    def draw(self, tick: Tick) -> None:
        if tick.bar not in self._tasks:
            self._tasks[tick.bar] = self._drawn.add_task(tick.bar, total=tick.total, text="")
        task = self._tasks[tick.bar]
        self._drawn.update(task, completed=tick.done, total=tick.total)
        if tick.text:
            self._drawn.update(task, text=tick.text)


def _bars() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mmprod.cli.output import console

    return Progress(
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console(sys.stderr),
    )


@contextmanager
def _logs_above_the_bars() -> Iterator[None]:
    """While bars are drawn, log lines go through the stream that Rich keeps above them."""
    handlers = [
        handler
        for handler in logging.getLogger("mmprod").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


def _log(tick: Tick) -> None:
    if tick.line is not None:
        print(json.dumps(tick.line, ensure_ascii=False), file=sys.stderr, flush=True)


def _figures(metrics: Mapping[str, float]) -> str:
    """`loss 0.123  psnr 24.1`: the first few, loss first."""
    names = sorted(metrics, key=lambda name: name != "loss")[:SHOWN_METRICS]
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names)
