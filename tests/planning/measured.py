"""The jobs that the plan is measured on: tiny, but with matrices of some size."""

from __future__ import annotations

from typing import Any

from mmprod.config.schema import Config, FusionConfig
from mmprod.planning.deepspeed_file import deepspeed_file
from mmprod.planning.memory import Layout
from tests.training.tiny import tiny_config, with_codec

BUCKET = 20_000
BATCH = 32


def config_of(precision: str) -> Config:
    """A codec and a fusion model of some hundred thousand weights."""
    config = with_codec(tiny_config(batch=BATCH, precision=precision), channels=32)
    fusion = FusionConfig.model_validate({**config.fusion.model_dump(), "width": 64, "heads": 4})
    return config.model_copy(update={"fusion": fusion})


def layout_of(zero: int, weights: str, world: int) -> Layout:
    return Layout(zero, weights, world=world, bucket=BUCKET)  # type: ignore[arg-type]


def file_of(layout: Layout) -> dict[str, Any]:
    return deepspeed_file(layout, BATCH // layout.world)
