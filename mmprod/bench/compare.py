"""An earlier bench beside a later one: what became slower?

Rows are one where graph, subject, precision, target and batch are. Figures of two machines, or of
two numbers of threads, say nothing about a change, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.bench.figures import FORMAT
from mmprod.bench.machine import SAME
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import read_json

KEY = ("graph", "subject", "precision", "target", "batch")
FIGURES = {"graph_only": "graph", "end_to_end": "end to end"}
HINT = "give two files that `mmprod bench run --out` wrote"


@dataclass(frozen=True)
class Change:
    """One figure, p50 in milliseconds, before and after. `after` None: it is no longer measured."""

    key: tuple[str, ...]
    figure: str
    before_ms: float
    after_ms: float | None
    limit: float
    """largest growth allowed, as a share"""
    reason: str = ""

    @property
    def growth(self) -> float | None:
        """Share by which it became slower; below zero: faster."""
        return None if self.after_ms is None else self.after_ms / self.before_ms - 1

    @property
    def regressed(self) -> bool:
        """Slower than allowed, or gone: a figure that vanishes must not look like a pass."""
        return self.growth is None or self.growth > self.limit

    def as_dict(self) -> dict[str, Any]:
        return {
            **dict(zip(KEY, self.key, strict=True)),
            "figure": self.figure,
            "before_ms": self.before_ms,
            "after_ms": self.after_ms,
            "growth": None if self.growth is None else round(self.growth, 4),
            "regressed": self.regressed,
            "reason": self.reason,
        }


def read_report(path: Path) -> dict[str, Any]:
    """A report as `BenchReport.as_dict` wrote it. Raises IntegrityError for anything else."""
    data = read_json(path, hint=HINT)
    if not isinstance(data, dict) or data.get("format") != FORMAT or "machine" not in data:
        raise IntegrityError(f"{path} is no bench report of format {FORMAT}", hint=HINT)
    try:
        for row in data["rows"]:
            _key(row), row["status"], row["reason"]
            for name in FIGURES:
                if row[name] is not None and not row[name]["p50_ms"] > 0:
                    raise ValueError(f"{name} of {' '.join(_key(row))} is not above zero")
        if not isinstance(data["settings"]["threads"], int):
            raise TypeError("threads")
        dict(data["machine"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is a malformed bench report: {error!r}", hint=HINT) from error
    return data


def compare_reports(
    old: Mapping[str, Any], new: Mapping[str, Any], limit: float, *, other_machine: bool = False
) -> list[Change]:
    """Every figure that `old` holds, with what it is in `new`. Raises ConfigError when the two
    cannot be compared.
    """
    _check_same(old, new, other_machine)
    later = {_key(row): row for row in new["rows"]}
    changes = []
    for row in old["rows"]:
        for name, shown in FIGURES.items():
            if row["status"] == "measured" and row[name] is not None:
                found = later.get(_key(row))
                after = found[name]["p50_ms"] if found and found[name] else None
                reason = "" if after is not None else _why_gone(found)
                changes.append(Change(_key(row), shown, row[name]["p50_ms"], after, limit, reason))
    if not changes:
        raise ConfigError("the old report holds no figures: nothing to compare", hint=HINT)
    if all(change.after_ms is None for change in changes):
        raise ConfigError(
            "the two reports have no row in common",
            hint="measure the same graphs, precisions and batches in both",
        )
    return changes


def named(report: Mapping[str, Any]) -> str:
    """The machine and the threads, in words."""
    machine = report["machine"]
    return (
        f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}, "
        f"{report['settings']['threads']} threads"
    )


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], other_machine: bool) -> None:
    differs = [key for key in SAME if old["machine"].get(key) != new["machine"].get(key)]
    if old["settings"]["threads"] != new["settings"]["threads"]:
        differs.append("threads")
    if differs and not other_machine:
        raise ConfigError(
            f"the reports differ in {', '.join(differs)}:\n"
            f"  old: {named(old)}\n  new: {named(new)}",
            hint="measure both on one machine, or add --other-machine to compare all the same",
        )


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def _why_gone(row: Mapping[str, Any] | None) -> str:
    return "not in the new report" if row is None else f"{row['status']}: {row['reason']}"
