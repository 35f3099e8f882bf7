"""Curves out of a run's metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprod.errors import IntegrityError
from mmprod.report.chart import Curve


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; a torn last line is left out.

    Raises IntegrityError when there is no such file, or naming a broken line.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="train that stage first: mmprod train")
    records = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise IntegrityError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(record, dict) or "step" not in record:
            raise IntegrityError(f"{path}:{number} has no step")
        records.append(record)
    return records


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
