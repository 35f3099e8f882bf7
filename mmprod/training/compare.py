"""Whether two runs of one job, on the same ranks, ended in the same place: bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmprod.checkpoint import layout
from mmprod.checkpoint.steps import list_steps, verify_step
from mmprod.errors import IntegrityError
from mmprod.manifest import read_json
from mmprod.training.metrics import read_metrics
from mmprod.training.telemetry import TIMING


@dataclass(frozen=True)
class Match:
    """One thing that was compared; `values`: how many numbers; `differs`: what is not equal."""

    stage: str
    what: str
    values: int
    differs: str = ""

    @property
    def equal(self) -> bool:
        return not self.differs and self.values > 0


def compare_runs(one: Path, other: Path, stages: tuple[str, ...]) -> list[Match]:
    """Exported weights, evaluation, the last checkpoint and the metrics of each stage. Raises
    IntegrityError where one of the runs is unfinished or damaged.
    """
    return [match for stage in stages for match in _stage(one / stage, other / stage)]


def _stage(one: Path, other: Path) -> list[Match]:
    name, steps = one.name, (_last_step(one), _last_step(other))
    files = [step / read_json(step / layout.MANIFEST)["folder"] for step in steps]
    records = [read_json(folder / layout.STAGE) for folder in (one, other)]
    state = [_tensors(folder) for folder in files]
    figures = [{"steps": r["steps"], "best": r["best_step"], **r["metrics"]} for r in records]
    weights = [_load(folder / layout.WEIGHTS) for folder in (one, other)]
    lines = [_lines(folder) for folder in (one, other)]
    return [
        Match(name, "model.safetensors", *_differences(*weights)),
        Match(name, f"checkpoint {steps[0].name}", *_differences(*state)),
        Match(name, "evaluation of the kept weights", *_differences(*figures)),
        Match(name, "metrics.jsonl without times", *_differences(*lines)),
    ]


def _last_step(folder: Path) -> Path:
    whole = [step.path for step in list_steps(folder) if step.complete]
    if not whole:
        raise IntegrityError(f"{folder} has no whole checkpoint", hint="let the run end first")
    verify_step(whole[-1])
    return whole[-1]


def _tensors(folder: Path) -> dict[str, Any]:
    return {
        f"{path.name}: {name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in _load(path).items()
    }


def _load(path: Path) -> dict[str, Any]:
    return dict(load_file(path))


def _lines(folder: Path) -> dict[str, Any]:
    return {
        f"{line['kind']} {line['step']} {name}": value
        for line in read_metrics(folder)
        for name, value in line.items()
        if name not in TIMING | {"kind", "step"}
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, str]:
    """How many numbers were compared, and the names where they are not the same bits."""
    names = sorted(one.keys() | other.keys())
    unlike = [n for n in names if n not in one or n not in other or not _same(one[n], other[n])]
    count = sum(v.numel() if isinstance(v, torch.Tensor) else 1 for v in one.values())
    more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
    return count, ", ".join(unlike[:3]) + more


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )
