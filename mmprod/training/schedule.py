"""Learning rate and averaging decay as pure functions of the step."""

from __future__ import annotations

import math

from mmprod.config.schema import TrainConfig


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Rate of optimizer step `step` (from 0).

    Linear warm-up over `warmup` steps, then a cosine to `lr_final * lr`.
    """
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = min(1.0, (step - cfg.warmup) / max(1, cfg.steps - 1 - cfg.warmup))
    return cfg.lr * (cfg.lr_final + (1 - cfg.lr_final) * (1 + math.cos(math.pi * progress)) / 2)


def ema_decay(limit: float, step: int) -> float:
    """Decay of the averaged weights after `step` optimizer steps: grows to `limit`, so that early
    averages are young.
    """
    return min(limit, (1 + step) / (10 + step))
