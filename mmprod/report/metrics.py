"""Curves out of a run's metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprod.errors import IntegrityError
from mmprod.report.chart import Curve

AGAIN = "remove the broken line, or train this stage again with --resume never"
LARGEST = 1e300
"""What training writes is finite and far below: NaN, infinity and the like are damage."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; a torn last line is left out.

    A record is `kind`, `step` and figures. Raises IntegrityError when there is no such file, when
    it is no text, or naming the line that is no such record.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="train that stage first: mmprod train")
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not text: {error}", hint=AGAIN) from error
    whole = (line for line in lines if line.endswith("\n"))
    return [_record(line, f"{path}:{number}") for number, line in enumerate(whole, start=1)]


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{place} is not JSON: {error}", hint=AGAIN) from error
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise IntegrityError(f"{place} has no step", hint=AGAIN)
    wrong = [name for name, value in record.items() if not _is_sound(name, value)]
    if wrong:
        raise IntegrityError(f"{place}: {', '.join(wrong)} is no figure", hint=AGAIN)
    return dict(record)


def _is_sound(name: str, value: object) -> bool:
    if name == "kind":
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def read_curve(path: Path, title: str, kind: str, names: Mapping[str, str]) -> Curve:
    """The chosen metrics over optimizer steps.

    `kind`: which records, `log` or `eval`. `names`: label in the chart by name of the metric.
    """
    records = [record for record in read_metrics(path) if record.get("kind") == kind]
    series = {
        label: [(record["step"], record[name]) for record in records if name in record]
        for name, label in names.items()
    }
    return Curve(title, "step", {label: points for label, points in series.items() if points})
