"""Metrics as data: `metrics.jsonl`, one JSON object per line, and the same figures for every sink.

{"kind": "log", "step", losses..., "lr", "grad_norm", speed and memory (telemetry.py)..., "seconds"}
                                 means since the previous log line
{"kind": "eval", "step", metrics of the averaged weights..., "seconds"}
A run that resumes at step s drops the lines after s, which it will write again. docs/monitoring.md
describes every key.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from mmprod.errors import IntegrityError
from mmprod.manifest import write_text
from mmprod.training.sinks import Background, open_sinks
from mmprod.training.telemetry import Monitoring

FILE = "metrics.jsonl"


class Meter:
    """Running means of named figures; its state goes into checkpoints so that a resumed run logs
    the same means. A figure that is not given at every step has the mean of the steps that gave it.
    """

    def __init__(
        self,
        sums: dict[str, float] | None = None,
        count: int = 0,
        counts: dict[str, int] | None = None,
    ) -> None:
        self.sums = dict(sums or {})
        self.count = count
        self.counts = dict.fromkeys(self.sums, count) if counts is None else dict(counts)

    def add(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means; starts anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts, self.count = {}, {}, 0
        return means


class MetricsLog:
    """Appends to a stage folder's metrics.jsonl and hands the same to the sinks.

    Does nothing on ranks other than 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        from_step: int,
        enabled: bool,
        monitoring: Monitoring | None = None,
        evaluated: int | None = None,
    ) -> None:
        """`evaluated`: the last step whose evaluation is not made again (default: `from_step`)."""
        self._path = folder / FILE
        self._enabled = enabled
        self._sinks: list[Background] = []
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(self._path, from_step, from_step if evaluated is None else evaluated)
            self._sinks = open_sinks(monitoring or Monitoring(), folder, from_step)

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        """One line, on disk when this returns to the loop.

        NaN and infinity are refused (ValueError: a bug).
        """
        if not self._enabled:
            return
        line = json.dumps({"kind": kind, "step": step, **figures}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        for sink in self._sinks:
            sink.figures(kind, step, figures)

    def picture(self, step: int, path: Path) -> None:
        """Show the samples of an evaluation, a PNG file that stays, in the sinks."""
        for sink in self._sinks:
            sink.picture(step, path)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks:
            sink.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of a stage folder's metrics.jsonl. A torn last line (a killed writer) is left out.

    Raises IntegrityError for a broken line before the last.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        hint = "remove the broken line, or train this stage again with --resume never"
        raise IntegrityError(f"{path} has a line that is not JSON: {error}", hint=hint) from error


def _drop_after(path: Path, step: int, evaluated: int) -> None:
    lines = read_metrics(path.parent)
    kept = [x for x in lines if x["step"] <= (evaluated if x["kind"] == "eval" else step)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
