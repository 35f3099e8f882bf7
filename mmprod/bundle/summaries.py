"""The results kept in bundle.json itself, as far as readers rely on their form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mmprod.errors import IntegrityError

SummaryKind = Literal["parity", "engines", "bench", "assignment"]
SUMMARIES: tuple[SummaryKind, ...] = get_args(SummaryKind)

COUNTS = ("pass", "fail", "not run")
VERDICT = ("leg", "graph", "precision", "target", "status", "reason")
ENGINE = ("graph", "precision", "flavour", "version", "target", "path", "sha256", "state")
ENGINE_NUMBERS = ("bytes", "seconds", "kernels", "fused_attention")
TIMING = ("graph", "subject", "precision", "target")
TIMING_NUMBERS = ("batch", "p50_ms", "samples_per_s", "peak_bytes")
MOST = 2.0**63
"""No figure is larger; each can be written as a float."""


def check_summaries(root: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The summaries of a bundle.json. Raises IntegrityError when a verdict cannot be read."""
    wrong = next((kind for kind, content in found.items() if not is_sound(kind, content)), None)
    if wrong is not None:
        raise IntegrityError(
            f"{root}: bundle.json holds a summary {wrong!r} that cannot be read",
            hint="use the version of mmprod that wrote the bundle, or export the run again",
        )
    return dict(found)


def is_sound(kind: str, content: Any) -> bool:
    """Whether readers can rely on a summary's form."""
    if kind == "engines":
        return isinstance(content, list) and all(_is_engine(record) for record in content)
    if kind == "assignment":
        return isinstance(content, dict) and all(isinstance(p, str) for p in content.values())
    if kind not in SUMMARIES or not isinstance(content, dict):
        return False
    rows = content.get("rows")
    if not isinstance(rows, list):
        return False
    if kind == "parity":
        return (
            isinstance(content.get("ok"), bool)
            and all(type(content.get(name, 0)) is int for name in COUNTS)
            and all(_has(row, VERDICT) and _has_hashes(row) for row in rows)
        )
    return all(isinstance(content.get(name), dict) for name in ("machine", "settings")) and all(
        _has(row, TIMING, TIMING_NUMBERS) and _has_hashes(row) for row in rows
    )


def _is_engine(record: Any) -> bool:
    return _has(record, ENGINE, ENGINE_NUMBERS)


def _has(row: Any, texts: Iterable[str], numbers: Iterable[str] = ()) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in texts)
        and all(type(row.get(name)) in (int, float) and abs(row[name]) < MOST for name in numbers)
    )


def _has_hashes(row: Mapping[str, Any]) -> bool:
    hashes = row.get("sha256")
    return isinstance(hashes, dict) and all(isinstance(value, str) for value in hashes.values())
