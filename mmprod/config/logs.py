"""The section `log`: where figures of training go beside metrics.jsonl, and what speed is measured
against. It does not change what is trained, so it may change while a run goes on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmprod.config.section import Section

Sink = Literal["tensorboard", "wandb", "mlflow"]


class LogConfig(Section):
    """Where the figures of training go (docs/monitoring.md); metrics.jsonl is always written."""

    to: tuple[Sink, ...] = Field(
        default=("tensorboard",),
        description="also write to tensorboard, wandb, mlflow (their own environment variables say "
        "which server; mlflow without one writes into the run)",
    )
    peak_tflops: float = Field(
        default=0.0,
        ge=0,
        description="TFLOP/s of one device at its best, which MFU is measured against; 0: from a "
        "table of GPUs, or measured on a CPU",
    )
