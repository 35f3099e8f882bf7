"""The dynamic loss scale of fp16 training (Micikevicius et al. 2018, sec. 3.2) of plain PyTorch.

Small gradients would be zero in fp16, so the loss is multiplied before the backward pass and the
gradients divided after it. An overflow means a smaller scale and no update; a long time without one
a larger scale. The rule and its numbers are those of DeepSpeed's default, so that a checkpoint of
one goes on under the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmprod.errors import NumericsError

PREFIX = "scale."
WINDOW = 1000
"""steps without overflow after which the scale doubles"""
HYSTERESIS = 2
"""overflows in a row of windows that the first halving takes"""
SMALLEST = 1.0


@dataclass
class LossScale:
    """value: what the loss is multiplied by; steps: all so far; last_overflow: the newest step with
    one, -1 before; hysteresis: overflows until the scale is halved.
    """

    value: float = 2.0**16
    steps: int = 0
    last_overflow: int = -1
    hysteresis: int = HYSTERESIS

    def update(self, *, overflow: bool) -> None:
        """After a step. Raises NumericsError when the smallest scale overflows."""
        if overflow:
            if self.hysteresis > 1:
                self.hysteresis -= 1
            elif self.value <= SMALLEST:
                raise overflow_error(self.value)
            else:
                self.value = max(self.value / 2, SMALLEST)
            self.last_overflow = self.steps
        else:
            stable = self.steps - self.last_overflow - 1
            if stable > 0 and stable % WINDOW == 0:
                self.hysteresis = HYSTERESIS
                self.value *= 2
        self.steps += 1

    def scalars(self) -> dict[str, float]:
        """The state, for checkpoints."""
        return {PREFIX + name: float(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, scalars: Mapping[str, float]) -> LossScale:
        """What `scalars` gave; defaults where it has nothing of it."""
        found = {n.removeprefix(PREFIX): v for n, v in scalars.items() if n.startswith(PREFIX)}
        value = found.pop("value", cls.value)
        return cls(value, **{name: int(number) for name, number in found.items()})


def overflow_error(scale: float) -> NumericsError:
    """The gradients cannot be kept in fp16 at all."""
    return NumericsError(
        f"gradients overflow fp16 even with the smallest loss scale, {scale:g}",
        hint="train with a lower lr, or precision bf16 or fp32 into another --out",
    )
