"""What the loop knows after a step beside weights and optimizer: it goes into every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmprod.training.metrics import Meter


@dataclass
class Progress:
    """Where the loop stands after `step` optimizer steps."""

    step: int = 0
    seconds: float = 0.0
    """training time so far, without evaluations and saves"""
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    """evaluations since the best one"""
    evaluated: int = 0
    """the last evaluated step: a stop may come between a step and its evaluation"""
    recent: list[float] = field(default_factory=list)
    """accepted losses that the spike guard compares with (guard.py)"""
    terms: list[str] = field(default_factory=list)
    """loss terms of those"""
    in_row: int = 0
    """skipped batches in a row"""
    meter: Meter = field(default_factory=Meter)

    def forget_best(self) -> None:
        """The best weights are lost: the next evaluation, which is due at this step where one fell
        on it, is the first to count.
        """
        self.best, self.best_step, self.best_metrics, self.stale = None, 0, {}, 0
        self.evaluated = min(self.evaluated, max(self.step - 1, 0))

    def state(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "meter"}
        return {**values, "meter": vars(self.meter)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "meter": Meter(**state["meter"])})
