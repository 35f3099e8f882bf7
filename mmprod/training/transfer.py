"""What became of each tensor when a stage started from given weights. Plain data, torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmprod.checkpoint import layout
from mmprod.errors import IntegrityError
from mmprod.manifest import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Verdict:
    """One tensor: `loaded`, `fresh` (ours, and keeps its initial value) or `unused` (theirs).

    reason: why it was not loaded; part: of the model (config/parts.py), or empty; shape: ours where
    we have it.
    """

    name: str
    verdict: Literal["loaded", "fresh", "unused"]
    reason: str
    part: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Tensors of one part with the same verdict and reason."""

    part: str
    verdict: str
    reason: str
    names: tuple[str, ...]
    values: int
    """numbers in these tensors"""


@dataclass(frozen=True)
class Transfer:
    """Where a stage's first weights are from, and the verdict on every tensor."""

    stage: str
    source: str
    sha256: str
    tensors: tuple[Verdict, ...]

    def count(self, verdict: str) -> int:
        """How many tensors have this verdict."""
        return sum(v.verdict == verdict for v in self.tensors)

    def rows(self) -> list[Row]:
        """The verdicts, grouped for people: loaded, then fresh, then unused."""
        groups: dict[tuple[str, str, str], list[Verdict]] = {}
        for wanted in ("loaded", "fresh", "unused"):
            for v in self.tensors:
                if v.verdict == wanted:
                    key = (v.part or "other", v.verdict, v.reason)
                    groups.setdefault(key, []).append(v)
        return [
            Row(*key, tuple(v.name for v in found), sum(math.prod(v.shape) for v in found))
            for key, found in groups.items()
        ]

    def summary(self) -> str:
        """One line: how much was loaded, and from where."""
        loaded, fresh, unused = (self.count(x) for x in ("loaded", "fresh", "unused"))
        return (
            f"{loaded} of {loaded + fresh} tensors loaded from {self.source}, {fresh} stay fresh, "
            f"{unused} of its tensors are not used"
        )

    def write(self, folder: Path) -> None:
        """init.json in a stage folder, atomically."""
        record = {"kind": "init", "format": FORMAT, **asdict(self)}
        write_json(folder / layout.INIT, record)


def read_transfer(folder: Path) -> Transfer | None:
    """What `Transfer.write` wrote; None where there is no init.json. Raises IntegrityError."""
    path = folder / layout.INIT
    if not path.is_file():
        return None
    record: Any = read_json(path)
    try:
        if record["format"] != FORMAT:
            raise IntegrityError(f"{path} is of another format")
        tensors = tuple(_verdicts(record["tensors"]))
        return Transfer(record["stage"], record["source"], record["sha256"], tensors)
    except (TypeError, KeyError) as error:
        raise IntegrityError(f"{path} does not say what was loaded: {error}") from error


def _verdicts(raw: list[dict[str, Any]]) -> Iterator[Verdict]:
    for entry in raw:
        verdict = Verdict(**{**entry, "shape": tuple(entry["shape"])})
        words = (verdict.name, verdict.verdict, verdict.reason, verdict.part)
        if not all(isinstance(word, str) for word in words) or not all(
            isinstance(size, int) for size in verdict.shape
        ):
            raise TypeError(f"{entry} is no verdict on a tensor")
        yield verdict
