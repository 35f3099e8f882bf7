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
    from mmprod.search.update import UpdateEvent
    from mmprod.training.events import Event

E = TypeVar("E")

WIDE = 116
"""columns of a terminal from which on a bar has room for everything"""


@dataclass(frozen=True)
class Tick:
    """`done` of `total` of a bar, words beside it, and the JSON line (None: too small to log).

    left_s: seconds to the end, where the stage itself knows better than the bar.
    """

    bar: str
    done: int
    total: int
    text: str
    line: Mapping[str, Any] | None
    left_s: float | None = None


class TrainingTicks:
    """Optimizer steps of a stage: the newest loss, speed and memory, and beside them the quality
    that the last evaluation found.
    """

    def __init__(self) -> None:
        self._course: dict[str, str] = {}
        self._quality: dict[str, str] = {}

    def __call__(self, event: Event) -> Tick:
        stage, left = event.stage, event.metrics.get("eta_s")
        if event.kind == "log":
            self._course[stage] = _course(event.metrics)
        elif event.kind == "eval":
            self._quality[stage] = _quality(event.metrics)
        words = (self._quality.get(stage), self._course.get(stage))
        line = {"event": event.kind, "stage": stage, "step": event.step, "steps": event.steps}
        text = "  ".join(part for part in words if part)
        return Tick(stage, event.step, event.steps, text, line | event.metrics, left)


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


def search_tick(event: UpdateEvent) -> Tick:
    """Pictures that are in the index."""
    line = {"event": "index", "done": event.done, "pictures": event.total}
    return Tick("pictures", event.done, event.total, "", line)


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
            self._tasks[tick.bar] = self._drawn.add_task(
                tick.bar, total=tick.total, text="", left_s=None
            )
        task = self._tasks[tick.bar]
        self._drawn.update(task, completed=tick.done, total=tick.total)
        if tick.left_s is not None:
            self._drawn.update(task, left_s=tick.left_s)
        if tick.text:
            self._drawn.update(task, text=tick.text)


def _bars() -> Progress:
    from datetime import timedelta

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    from mmprod.cli.output import console

    class Left(TimeRemainingColumn):
        """What the stage says is left, else what the bar's own pace says."""

        def render(self, task: Task) -> Text:
            left = task.fields["left_s"]
            if left is None or task.finished:
                return super().render(task)
            return Text(str(timedelta(seconds=round(left))), style="progress.remaining")

    drawn_on = console(sys.stderr)
    wide = drawn_on.width >= WIDE
    return Progress(
        TextColumn("{task.description:<14}" if wide else "{task.description}", markup=False),
        BarColumn(bar_width=28 if wide else 8),
        MofNCompleteColumn(),
        *([TimeElapsedColumn()] if wide else []),
        TextColumn("left", markup=False),
        Left(),
        TextColumn(
            "{task.fields[text]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=drawn_on,
        expand=True,
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


def _course(metrics: Mapping[str, float]) -> str:
    """A log line in the few words that fit beside a bar; all of it is in metrics.jsonl."""
    words: dict[str, Callable[[float], str]] = {
        "loss": lambda v: f"loss {v:.4f}",
        "images_per_s": lambda v: f"{v:,.0f} img/s" if v >= 10 else f"{v:.1f} img/s",
        "mfu": lambda v: f"MFU {v:.0%}",
        "memory_bytes": lambda v: f"{v / 1e9:.1f} GB",
    }
    return "  ".join(word(metrics[name]) for name, word in words.items() if name in metrics)


def _quality(metrics: Mapping[str, float]) -> str:
    """PSNR of a codec, else the loss on the val split."""
    if "psnr" in metrics:
        return f"{metrics['psnr']:.2f} dB"
    return f"val {metrics['loss']:.4f}" if "loss" in metrics else ""
