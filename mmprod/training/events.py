"""What training tells its caller while it runs, and what it returns. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["log", "eval", "save", "stage"]


@dataclass(frozen=True)
class Event:
    """Something happened in `stage` after `step` of `steps` optimizer steps. Sent on rank 0 only.

    kind: `log` a logging interval ended; `eval` an evaluation ended; `save` a checkpoint is
    complete; `stage` a stage begins (step = steps already done) or was found finished (step =
    steps).
    """

    stage: str
    step: int
    steps: int
    metrics: dict[str, float]
    kind: Kind


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class StageResult:
    """One finished stage: steps done, the step whose weights were kept, and its evaluation."""

    stage: str
    steps: int
    best_step: int
    metrics: dict[str, float]
    skipped: bool = False
    """the stage was finished already"""


@dataclass(frozen=True)
class TrainResult:
    """What `train` leaves behind: the run folder and the stages that were asked for."""

    run: Path
    stages: Mapping[str, StageResult] = field(default_factory=dict)
